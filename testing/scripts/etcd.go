// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

const (
	// startTimeout bounds the start of an etcd or of a hive, stopTimeout their stop.
	startTimeout = time.Minute
	stopTimeout  = time.Minute
	// etcdTimeout bounds a command on an etcd.
	etcdTimeout = 30 * time.Second
)

// scratchKey is written to move an etcd's revision; nobody cares for it.
const scratchKey = "scratch"

// server is one named etcd, which may be running or not. Its client goes past
// all links, so that what a script does itself never suffers faults.
type server struct {
	name  string
	dir   string
	token string

	mu      sync.Mutex
	running *etcd.Server // nil while it isn't
	client  *etcd.Client
}

// newServer is an etcd with a random token, not started yet.
func newServer(name, dir string) *server {
	return &server{name: name, dir: dir, token: rand.Text()}
}

// address is where it listens, empty while it isn't running.
func (s *server) address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return ""
	}
	return strings.TrimPrefix(s.running.URL(), "http://")
}

// start starts it on the data it has and raises its revision to at least the
// given one before anybody else can see it.
func (s *server) start(ctx context.Context, log *slog.Logger, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if s.running != nil {
		return fmt.Errorf("etcd %q runs already", s.name)
	}
	running, err := etcd.StartServer(ctx, etcd.ServerConfig{Dir: s.dir, Token: s.token, ListenURL: "http://127.0.0.1:0"})
	if err != nil {
		return err
	}
	client, err := etcd.NewClient(log, etcd.ClientConfig{Endpoints: []string{running.URL()}})
	if err == nil {
		err = raiseRevision(ctx, client.Etcd(), revision)
	}
	if err != nil {
		running.Close()
		return fmt.Errorf("starting etcd %q: %w", s.name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.client = running, client
	return nil
}

// stop stops it, if it runs. Its data stay. Once it no longer has an address,
// lost is called to end the connections that there are: etcd would wait for
// seconds for its clients to leave.
func (s *server) stop(lost func()) error {
	s.mu.Lock()
	running, client := s.running, s.client
	s.running, s.client = nil, nil
	s.mu.Unlock()
	if running == nil {
		return nil
	}
	lost()
	err := client.Close()
	running.Close()
	return err
}

// do runs something on the etcd, which must be running.
func (s *server) do(ctx context.Context, do func(context.Context, *clientv3.Client) error) error {
	s.mu.Lock()
	client := s.client
	s.mu.Unlock()
	if client == nil {
		return fmt.Errorf("etcd %q isn't running", s.name)
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	return do(ctx, client.Etcd())
}

// wipe removes the data of an etcd that is stopped. With another token it comes
// back as another cluster, with the same one it can't be told apart by its ID.
func (s *server) wipe(sameToken bool) error {
	if !sameToken {
		s.token = rand.Text()
	}
	return os.RemoveAll(s.dir)
}

func raiseRevision(ctx context.Context, client *clientv3.Client, to int64) error {
	resp, err := client.Get(ctx, scratchKey)
	if err != nil {
		return fmt.Errorf("reading the revision: %w", err)
	}
	// Each write is a revision; many at once take little longer than one.
	puts, ctx := errgroup.WithContext(ctx)
	for range max(0, to-resp.Header.Revision) {
		puts.Go(func() error {
			_, err := client.Put(ctx, scratchKey, "")
			return err
		})
	}
	if err := puts.Wait(); err != nil {
		return fmt.Errorf("raising the revision: %w", err)
	}
	return nil
}

// compact makes the etcd forget all history, so that whoever was away must list.
func compact(ctx context.Context, client *clientv3.Client) error {
	resp, err := client.Get(ctx, scratchKey)
	if err != nil {
		return fmt.Errorf("reading the revision: %w", err)
	}
	_, err = client.Compact(ctx, resp.Header.Revision)
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil // nothing was written since the last time
	}
	return err
}

// expireLeases makes all leases run out now.
func expireLeases(ctx context.Context, client *clientv3.Client) (n int, err error) {
	resp, err := client.Leases(ctx)
	if err != nil {
		return 0, fmt.Errorf("listing leases: %w", err)
	}
	for _, lease := range resp.Leases {
		_, err := client.Revoke(ctx, lease.ID)
		if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return n, fmt.Errorf("revoking a lease: %w", err)
		}
		n++
	}
	return n, nil
}

// putOnLease writes a key that nobody keeps alive.
func putOnLease(ctx context.Context, client *clientv3.Client, key string, ttl time.Duration) error {
	lease, err := client.Grant(ctx, max(1, int64(ttl.Seconds())))
	if err != nil {
		return fmt.Errorf("granting a lease: %w", err)
	}
	_, err = client.Put(ctx, key, "", clientv3.WithLease(lease.ID))
	return err
}

// history gives what happened to the keys below a prefix, one line for each
// change, as far back as the etcd remembers.
func history(ctx context.Context, client *clientv3.Client, prefix string, onlyDeleted bool) (string, error) {
	var out strings.Builder
	err := walk(ctx, client, func(event *clientv3.Event) {
		wanted := !onlyDeleted || event.Type == clientv3.EventTypeDelete
		if wanted && strings.HasPrefix(string(event.Kv.Key), prefix) {
			fmt.Fprintf(&out, "%s %s\n", event.Type, event.Kv.Key)
		}
	})
	return out.String(), err
}

// vanished gives what was below one of the prefixes at one revision and below none of
// them at the next, without the prefix, one line for each time.
func vanished(ctx context.Context, client *clientv3.Client, prefixes []string) (string, error) {
	var (
		out      strings.Builder
		revision int64
		deleted  []string                // at that revision
		places   = map[string]set[int]{} // by key, the prefixes that it is below
	)
	settle := func() {
		for _, key := range deleted {
			if len(places[key]) == 0 {
				fmt.Fprintln(&out, key)
			}
		}
		deleted = deleted[:0]
	}
	err := walk(ctx, client, func(event *clientv3.Event) {
		if event.Kv.ModRevision != revision {
			settle()
			revision = event.Kv.ModRevision
		}
		for i, prefix := range prefixes {
			key, below := strings.CutPrefix(string(event.Kv.Key), prefix)
			switch {
			case !below:
			case event.Type == clientv3.EventTypeDelete:
				delete(places[key], i)
				deleted = append(deleted, key)
			case places[key] == nil:
				places[key] = set[int]{i: {}}
			default:
				places[key][i] = struct{}{}
			}
		}
	})
	settle()
	return out.String(), err
}

type set[K comparable] = map[K]struct{}

// walk tells what happened in an etcd, in order, as far back as it remembers.
func walk(ctx context.Context, client *clientv3.Client, tell func(*clientv3.Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// All keys are watched: once this one is seen, so was everything before it.
	end, err := client.Put(ctx, scratchKey, "")
	if err != nil {
		return fmt.Errorf("marking the end of history: %w", err)
	}
	from := int64(1)
	for {
		for resp := range client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(from)) {
			if resp.CompactRevision > from {
				from = resp.CompactRevision
				break
			}
			if err := resp.Err(); err != nil {
				return fmt.Errorf("reading history: %w", err)
			}
			for _, event := range resp.Events {
				from = event.Kv.ModRevision + 1
				tell(event)
			}
			if from > end.Header.Revision {
				return nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
