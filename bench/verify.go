// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// digest is the content of one prefix: the number of its entries, and the sum of
// their hashes, which doesn't depend on their order.
type digest struct {
	entries int
	sum     uint64
}

func (d *digest) add(key string, value []byte) {
	d.entries++
	var h xxhash.Digest
	h.Reset()
	_, _ = h.WriteString(key) // never fails
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(value)
	d.sum += h.Sum64()
}

// expected is what belongs into the local etcd, by prefix.
func expected(mesh Mesh) (map[string]digest, error) {
	out := map[string]digest{}
	for i := range mesh.Clusters {
		c := mesh.Cluster(i)
		for r := range mesh.generated() {
			var d digest
			err := c.Entries(r, func(key string, value []byte) error { d.add(key, value); return nil })
			if err != nil {
				return nil, err
			}
			if d.entries > 0 {
				out[wire.CachePrefix(r, c.Name)] = d
			}
		}
	}
	return out, nil
}

// arrived is what is in the local etcd, by the same prefixes; what is below none
// of them is found below "".
func arrived(ctx context.Context, client *etcd.Client, log *slog.Logger, mesh Mesh) (map[string]digest, error) {
	prefixes := map[string]struct{}{}
	for i := range mesh.Clusters {
		for r := range mesh.generated() {
			prefixes[wire.CachePrefix(r, mesh.Cluster(i).Name)] = struct{}{}
		}
	}
	return contentBelow(ctx, client, log, wire.CacheRoot, prefixes)
}

// contentBelow is what an etcd has below a root, by prefix; what is below none
// of the prefixes is found below "".
func contentBelow(ctx context.Context, client *etcd.Client, log *slog.Logger, root string, prefixes map[string]struct{}) (map[string]digest, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := map[string]digest{}
	complete := false
	reader := etcd.NewReader(etcd.ReaderConfig{Log: log, Prefix: root}, etcd.ObserverFunc(
		func(_ context.Context, batch etcd.Batch) {
			for _, ev := range batch.Events {
				prefix, key := splitPrefix(prefixes, root+ev.Key)
				d := out[prefix]
				d.add(key, ev.Value)
				out[prefix] = d
			}
			if batch.Synced {
				complete = true
				cancel()
			}
		}))
	if err := reader.Run(ctx, client); err != nil {
		return nil, fmt.Errorf("reading %q: %w", root, err)
	}
	if !complete {
		return nil, fmt.Errorf("reading %q: %w", root, context.Cause(ctx))
	}
	return out, nil
}

// splitPrefix finds the one of the prefixes, each ending in a slash, that a key
// is below.
func splitPrefix(prefixes map[string]struct{}, key string) (prefix, rest string) {
	for i := 0; i < len(key); i++ {
		n := strings.IndexByte(key[i:], '/')
		if n < 0 {
			break
		}
		i += n
		if _, ok := prefixes[key[:i+1]]; ok {
			return key[:i+1], key[i+1:]
		}
	}
	return "", key
}

// compare names each prefix whose content differs.
func compare(want, got map[string]digest) error {
	var errs []error
	for prefix, w := range want {
		if g := got[prefix]; g != w {
			errs = append(errs, fmt.Errorf("%s has %d entries with digest %016x instead of %d with %016x",
				prefix, g.entries, g.sum, w.entries, w.sum))
		}
	}
	for prefix, g := range got {
		if _, ok := want[prefix]; !ok {
			errs = append(errs, fmt.Errorf("%q has %d entries that nobody sent", prefix, g.entries))
		}
	}
	return errors.Join(errs...)
}

// checkConfigs checks that each cluster's config is there, as that of a cache.
func checkConfigs(ctx context.Context, client *etcd.Client, mesh Mesh) error {
	for i := range mesh.Clusters {
		c := mesh.Cluster(i)
		raw, err := client.Get(ctx, wire.ClusterConfigKey(c.Name))
		if err != nil {
			return err
		}
		config, err := wire.ParseClusterConfig(raw)
		switch {
		case err != nil:
			return fmt.Errorf("the config of %s: %w", c.Name, err)
		case config.ID != c.ID || !config.Capabilities.Cached || !config.Capabilities.SyncedCanaries:
			return fmt.Errorf("the config of %s is %s", c.Name, raw)
		}
	}
	return nil
}
