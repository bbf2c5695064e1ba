// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	methodRange        = "/etcdserverpb.KV/Range"
	methodTxn          = "/etcdserverpb.KV/Txn"
	methodStatus       = "/etcdserverpb.Maintenance/Status"
	methodAlarm        = "/etcdserverpb.Maintenance/Alarm"
	methodAuthenticate = "/etcdserverpb.Auth/Authenticate"

	// healthKey is what "etcdctl endpoint health" asks an etcd for, and then for alarms.
	healthKey = "health"

	// A request is a key of some 100 bytes, or as many as an etcd takes operations.
	maxRequestBytes = 16 << 10
	maxTxnOps       = 128
	// maxStreams are the requests at a time over one connection, which one agent has.
	maxStreams = 256
	// workers are goroutines that stay for one request after the other, and what is more at
	// a time has one of its own: the stack of a new one is copied several times on its way
	// to where a request is answered, which took a sixth of what that costs.
	workers = 8
)

// server is etcd's service of keys and values, as far as it is answered: Range of one
// key, and a Txn of several such. What is answered is at most --ondemand-cache-ttl old,
// whether the request allows that or not, and the header is that of the etcd that has
// answered.
type server struct {
	pb.UnimplementedKVServer
	pb.UnimplementedMaintenanceServer
	source  *source
	names   names
	metrics *Metrics
}

// grpc gives the gRPC server of what is answered.
func (s *server) grpc(creds credentials.TransportCredentials) *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.NumStreamWorkers(workers),
		grpc.ForceServerCodecV2(etcd.NewCodec()),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.WaitForHandlers(true),
		// A client that is gone is noticed; and etcd's clients ask whether we are there.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.intercept),
		// None is answered, of known services neither; and who may not ask is told so.
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, _ grpc.StreamHandler) error {
			return s.refuse(srv, stream)
		}),
		grpc.UnknownServiceHandler(s.refuse),
	)
	pb.RegisterKVServer(server, s)
	pb.RegisterMaintenanceServer(server, s)
	return server
}

// intercept lets through what is answered, for clients that may ask.
func (s *server) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if info.FullMethod == methodTxn && s.names.check(ctx) == nil {
		return handler(ctx, req) // which counts each look-up
	}
	end := s.metrics.begin()
	resp, outcome, err := s.admit(ctx, req, info.FullMethod, handler)
	end(outcome)
	return resp, err
}

func (s *server) admit(ctx context.Context, req any, method string, handler grpc.UnaryHandler) (resp any, outcome string, err error) {
	if err = s.names.check(ctx); err == nil {
		switch method {
		case methodRange, methodStatus, methodAlarm:
			resp, err = handler(ctx, req)
		default:
			err = notAnswered(method)
		}
	}
	if err != nil {
		return nil, outcomeOf(err), err
	}
	return resp, outcomeOfAnswer(resp), nil
}

func outcomeOfAnswer(resp any) string {
	if found, ok := resp.(*pb.RangeResponse); ok && found.Count == 0 {
		return outcomeNotFound
	}
	return outcomeFound
}

// refuse is for all streams, which is also what isn't KV or Maintenance comes as.
func (s *server) refuse(_ any, stream grpc.ServerStream) (err error) {
	end := s.metrics.begin()
	defer func() { end(outcomeOf(err)) }()
	if err := s.names.check(stream.Context()); err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(stream)
	if method == methodAuthenticate {
		// A client that has a password goes on without it.
		return rpctypes.ErrGRPCAuthNotEnabled
	}
	return notAnswered(method)
}

func notAnswered(method string) error {
	return fail(outcomeMalformed, codes.Unimplemented, "%.256s isn't answered: this is no etcd, and only single keys are looked up", method)
}

// Range implements pb.KVServer.
func (s *server) Range(_ context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	lookup, err := parse(req)
	if err != nil {
		return nil, err
	}
	if string(req.Key) == healthKey {
		return &pb.RangeResponse{Header: &pb.ResponseHeader{}}, nil
	}
	got := s.source.ask(lookup)[0]
	if got.err != nil {
		return nil, got.err
	}
	var of part
	of.respond(req, got.answer)
	return &of.found, nil
}

// Txn implements pb.KVServer, for several look-ups in one request. They are made at the
// same time, and what the first of them fails by is the answer. Unlike an etcd's they
// aren't of one revision, and the header is that of the first.
func (s *server) Txn(_ context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	lookups, err := parseTxn(req)
	if err != nil {
		s.metrics.begin()(outcomeOf(err))
		return nil, err
	}
	end := s.metrics.beginMany(len(lookups))
	results := s.source.ask(lookups...)
	end(func(i int) string {
		switch {
		case results[i].err != nil:
			return outcomeOf(results[i].err)
		case results[i].kv == nil:
			return outcomeNotFound
		}
		return outcomeFound
	})
	resp := &pb.TxnResponse{Succeeded: true, Responses: make([]*pb.ResponseOp, len(results))}
	parts := make([]part, len(results))
	for i, got := range results {
		if got.err != nil {
			return nil, got.err
		}
		of := &parts[i]
		of.respond(req.Success[i].GetRequestRange(), got.answer)
		of.read.ResponseRange, of.op.Response = &of.found, &of.read
		resp.Responses[i] = &of.op
	}
	resp.Header = &parts[0].header
	return resp, nil
}

// part is what an answer to one key is made of, so that those of a transaction are one object.
type part struct {
	op     pb.ResponseOp
	read   pb.ResponseOp_ResponseRange
	found  pb.RangeResponse
	header pb.ResponseHeader
	kv     mvccpb.KeyValue
	kvs    [1]*mvccpb.KeyValue
}

// parseTxn gives what a transaction looks up.
func parseTxn(req *pb.TxnRequest) ([]wire.Lookup, error) {
	if err := checkTxn(req); err != nil {
		return nil, err
	}
	lookups := make([]wire.Lookup, len(req.Success))
	for i, op := range req.Success {
		var err error
		if string(op.GetRequestRange().Key) == healthKey {
			err = fail(outcomeMalformed, codes.InvalidArgument, "%q isn't looked up in a transaction", healthKey)
		} else {
			lookups[i], err = parse(op.GetRequestRange())
		}
		if err != nil {
			return nil, err
		}
	}
	return lookups, nil
}

// parse gives what a request looks up; nothing for healthKey.
func parse(req *pb.RangeRequest) (wire.Lookup, error) {
	if err := checkRange(req); err != nil || string(req.Key) == healthKey {
		return wire.Lookup{}, err
	}
	lookup, err := wire.ParseReadThroughKey(string(req.Key))
	if err != nil {
		return wire.Lookup{}, fail(outcomeMalformed, codes.InvalidArgument, "%v", err)
	}
	return lookup, nil
}

// checkTxn refuses what isn't only look-ups.
func checkTxn(req *pb.TxnRequest) error {
	onlyLookups := len(req.Success) > 0 && len(req.Compare) == 0 && len(req.Failure) == 0
	for _, op := range req.Success {
		onlyLookups = onlyLookups && op.GetRequestRange() != nil
	}
	switch {
	case !onlyLookups:
		return fail(outcomeMalformed, codes.Unimplemented, "no transaction is answered but one that only looks up single keys: this is no etcd")
	case len(req.Success) > maxTxnOps:
		return rpctypes.ErrGRPCTooManyOps
	}
	return nil
}

// checkRange refuses what would mean something else than the one key as it is now.
func checkRange(req *pb.RangeRequest) error {
	switch {
	case len(req.Key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case len(req.RangeEnd) > 0:
		return fail(outcomeMalformed, codes.InvalidArgument, "no range is answered, such as that from %.256q to %.256q: only single keys are looked up", req.Key, req.RangeEnd)
	case req.Revision > 0:
		return rpctypes.ErrGRPCCompacted // no history is kept
	case req.MinModRevision != 0, req.MaxModRevision != 0, req.MinCreateRevision != 0, req.MaxCreateRevision != 0:
		return fail(outcomeMalformed, codes.InvalidArgument, "%.256q can't be asked for by revision", req.Key)
	}
	return nil
}

// respond answers as etcd would if it had the key that was asked for.
func (p *part) respond(req *pb.RangeRequest, a answer) {
	p.header = *a.header // which others are given as well
	p.found.Header = &p.header
	if a.kv == nil {
		return
	}
	p.found.Count = 1
	if req.CountOnly {
		return
	}
	p.kv = mvccpb.KeyValue{Key: req.Key, CreateRevision: a.kv.CreateRevision, ModRevision: a.kv.ModRevision, Version: a.kv.Version}
	if !req.KeysOnly {
		p.kv.Value = a.kv.Value
	}
	p.kvs[0] = &p.kv
	p.found.Kvs = p.kvs[:]
}

// Status implements pb.MaintenanceServer: whoever gets it has a connection that is
// answered. The size is that of the cache, and not 0, by which etcdctl divides.
func (s *server) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	size := max(1, s.source.cache.size())
	return &pb.StatusResponse{Header: &pb.ResponseHeader{}, Version: version.Version, DbSize: size, DbSizeInUse: size}, nil
}

// Alarm implements pb.MaintenanceServer. There are none.
func (s *server) Alarm(_ context.Context, req *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if req.Action != pb.AlarmRequest_GET {
		return nil, notAnswered(methodAlarm)
	}
	return &pb.AlarmResponse{Header: &pb.ResponseHeader{}}, nil
}
