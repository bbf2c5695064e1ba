// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
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

// listPages reads a prefix page by page, all at the revision of the first one,
// and hands each to fn, at least one. The memory of a page may be reused by the
// time that the next one is asked for, unless fn kept it.
func listPages(ctx context.Context, client *Client, prefix string, fn func(*pb.RangeResponse) error) error {
	return pages(ctx, client, prefix, false, fn)
}

// listKeys is listPages without the values.
func listKeys(ctx context.Context, client *Client, prefix string, fn func(*pb.RangeResponse) error) error {
	return pages(ctx, client, prefix, true, fn)
}

func pages(ctx context.Context, client *Client, prefix string, keysOnly bool, fn func(*pb.RangeResponse) error) error {
	req := &pb.RangeRequest{
		Key:      []byte(prefix),
		RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)),
		Limit:    firstPage,
		KeysOnly: keysOnly,
	}
	var revision int64
	for {
		resp, err := client.get(ctx, pageTimeout, req)
		if err != nil {
			return err
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		if err := fn(resp); err != nil {
			return err
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return nil
		}
		last := resp.Kvs[len(resp.Kvs)-1].Key
		req = &pb.RangeRequest{
			Key:      append(append(make([]byte, 0, len(last)+1), last...), 0),
			RangeEnd: req.RangeEnd,
			Limit:    nextPage(client.cfg.Options.PageBytes, resp.Size(), len(resp.Kvs), int(resp.Count)-len(resp.Kvs)),
			Revision: revision,
			KeysOnly: keysOnly,
		}
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
