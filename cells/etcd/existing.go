// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// existingTimeout bounds Existing: who asks, asks for a person, and tells the rest
// without an etcd that doesn't answer.
const existingTimeout = 5 * time.Second

// Existing says which of some keys etcd has, all at one revision. It is for as few as
// a transaction may hold (128, by etcd's default). It may be called before the client
// is opened, and then fails.
func (c *Client) Existing(ctx context.Context, keys []string) (map[string]bool, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	if c.etcd == nil {
		return nil, errors.New("the etcd client isn't open yet")
	}
	ctx, cancel := context.WithTimeout(ctx, existingTimeout)
	defer cancel()
	ops := make([]clientv3.Op, 0, len(keys))
	for _, key := range keys {
		ops = append(ops, clientv3.OpGet(key, clientv3.WithCountOnly()))
	}
	resp, err := c.etcd.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, fmt.Errorf("looking %d keys up: %w", len(keys), err)
	}
	has := make(map[string]bool, len(keys))
	for i, key := range keys {
		has[key] = resp.Responses[i].GetResponseRange().Count > 0
	}
	return has, nil
}
