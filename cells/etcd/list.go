// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// firstPage is the number of keys of the first page, from whose size that
	// of the others is worked out.
	firstPage = 1000
	// maxPage bounds a page of very small values.
	maxPage = 100_000
	// largerPages is how many times PageBytes the pages of a large list may be.
	largerPages = 4
	// pageTimeout bounds one page; a page of 50,000 keys takes 70 ms on two cores.
	pageTimeout = time.Minute
)

// listing says what of a prefix is read, and how.
type listing struct {
	prefix   string
	keysOnly bool // without the values
	// ahead asks for the next page while the last one is taken in, so that neither
	// side waits for the other. It costs the memory of a page.
	ahead bool
	// postponed, if set, is called in place of sleepPostponed when the server puts
	// a page off, the first one of the list or a later one.
	postponed func(ctx context.Context, first bool, reason error, delay time.Duration) error
}

// pages reads a prefix page by page, all at the revision of the first one, and
// hands each to fn, at least one. When it returns, it has nothing under way.
func (l listing) pages(ctx context.Context, client *Client, fn func(*pb.RangeResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var fetching sync.WaitGroup
	defer fetching.Wait()
	defer cancel()
	type fetched struct {
		page *pb.RangeResponse
		err  error
	}
	next := make(chan fetched, 1)
	fetch := func(req *pb.RangeRequest) {
		page, err := l.fetch(ctx, client, req)
		next <- fetched{page, err}
	}
	fetch(&pb.RangeRequest{
		Key:      []byte(l.prefix),
		RangeEnd: []byte(clientv3.GetPrefixRangeEnd(l.prefix)),
		Limit:    firstPage,
		KeysOnly: l.keysOnly,
	})
	for revision := int64(0); ; {
		last := <-next
		if last.err != nil {
			return last.err
		}
		if revision == 0 {
			revision = last.page.Header.Revision
		}
		req := l.following(client, last.page, revision)
		if req != nil && l.ahead {
			fetching.Go(func() { fetch(req) })
		}
		if err := fn(last.page); err != nil || req == nil {
			return err
		}
		if !l.ahead {
			fetch(req)
		}
	}
}

// fetch reads one page. One that the server puts off is asked for again: the list
// goes on where it was, at its revision.
func (l listing) fetch(ctx context.Context, client *Client, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	for {
		page, err := client.get(ctx, pageTimeout, req)
		delay, postponed := postponement(err)
		switch {
		case !postponed:
			return page, err
		case l.postponed != nil:
			err = l.postponed(ctx, req.Revision == 0, err, delay)
		default:
			err = sleepPostponed(ctx, delay)
		}
		if err != nil {
			return nil, err
		}
	}
}

// following is the request for the page after this one; nil if it is the last.
func (l listing) following(client *Client, page *pb.RangeResponse, revision int64) *pb.RangeRequest {
	if !page.More || len(page.Kvs) == 0 {
		return nil
	}
	last := page.Kvs[len(page.Kvs)-1].Key
	return &pb.RangeRequest{
		Key:      append(append(make([]byte, 0, len(last)+1), last...), 0),
		RangeEnd: []byte(clientv3.GetPrefixRangeEnd(l.prefix)),
		Limit:    nextPage(client.cfg.Options.PageBytes, page.Size(), len(page.Kvs), int(page.Count)-len(page.Kvs)),
		Revision: revision,
		KeysOnly: l.keysOnly,
	}
}

// nextPage is the number of keys of the next page, going by the size of the last
// one: those that fill pageBytes. Where much remains, it is an eighth of that, up
// to largerPages times as many: etcd counts what remains for each page, and of a
// list of 500,000 keys in pages of 4 MiB that was half of its cost.
func nextPage(pageBytes, lastBytes, lastKeys, remaining int) int64 {
	fill := max(pageBytes*lastKeys/max(lastBytes, 1), 1)
	return int64(min(max(fill, min(remaining/8, largerPages*fill)), maxPage))
}
