// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

var hive = wire.ClusterInfo{Name: "hive", ID: 7}

// held is what a snapshot holds, in memory.
type held map[wire.Resource][]ingest.Entry

func (h held) entries(resource wire.Resource, fn func(ingest.Entry) error) error {
	for _, e := range h[resource] {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

func (h held) take(resource wire.Resource, entries []ingest.Entry) error {
	h[resource] = append(h[resource], entries...)
	return nil
}

func headerOf(resources ...wire.Resource) snapshotHeader {
	header := snapshotHeader{Cluster: hive.Name, ClusterID: hive.ID, Created: time.Unix(1700000000, 0).UTC(), Program: "test"}
	for i, resource := range resources {
		header.Resources = append(header.Resources, ingest.SavedPosition{Resource: resource, Position: etcd.Position{
			ClusterID: 1<<63 + 1, Revision: int64(100 + i),
			Anchor: etcd.Anchor{Key: "cilium/x", CreateRevision: 1, ModRevision: 2, Version: 3, LeaseID: 1 << 62}}})
	}
	return header
}

func encoded(t require.TestingT, header snapshotHeader, content held) []byte {
	var out bytes.Buffer
	require.NoError(t, writeSnapshot(&out, header, content.entries))
	return out.Bytes()
}

// TestSnapshotRoundTrip writes and reads random snapshots.
func TestSnapshotRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		resources := rapid.Permutation(wire.CacheResources).Draw(t, "resources")
		resources = resources[:rapid.IntRange(0, len(resources)).Draw(t, "count")]
		header, content := headerOf(resources...), held{}
		for _, resource := range resources {
			for range rapid.SampledFrom([]int{0, 1, 3, entriesAtOnce, entriesAtOnce + 1}).Draw(t, "entries") {
				content[resource] = append(content[resource], ingest.Entry{
					Key: fmt.Sprint(len(content[resource])), Value: []byte("value"), Waits: len(content[resource])%7 == 0})
			}
			if rapid.Bool().Draw(t, "odd") {
				content[resource] = append(content[resource], ingest.Entry{
					Key: rapid.String().Draw(t, "key"), Value: rapid.SliceOf(rapid.Byte()).Draw(t, "value")})
			}
		}
		raw := encoded(t, header, content)
		got := held{}
		_, err := readSnapshot(bytes.NewReader(raw), hive, nil)
		require.NoError(t, err)
		read, err := readSnapshot(bytes.NewReader(raw), hive, got.take)
		require.NoError(t, err)
		require.Equal(t, header, read)
		for resource, want := range content {
			require.Len(t, got[resource], len(want))
			for i, e := range want {
				require.Equal(t, e.Key, got[resource][i].Key)
				require.True(t, bytes.Equal(e.Value, got[resource][i].Value))
				require.Equal(t, e.Waits, got[resource][i].Waits)
			}
		}
	})
}

// sampled is the number of endpoints in sample.
const sampled = 20

func sample(t require.TestingT) []byte {
	return encoded(t, headerOf(wire.Identities, wire.Endpoints), held{
		wire.Identities: {{Key: "300", Value: []byte("k8s:app=web;")}},
		wire.Endpoints:  endpointEntries(t, sampled),
	})
}

// TestSnapshotTorn cuts a snapshot off at each length, and turns each of its bits.
func TestSnapshotTorn(t *testing.T) {
	raw := sample(t)
	for length := range raw {
		_, err := readSnapshot(bytes.NewReader(raw[:length]), hive, nil)
		require.ErrorIs(t, err, errSnapshotTorn, "of %d bytes %d", len(raw), length)
	}
	_, err := readSnapshot(bytes.NewReader(append(slices.Clone(raw), 0)), hive, nil)
	require.ErrorIs(t, err, errSnapshotTorn)
	for at := range raw {
		for bit := range 8 {
			flipped := slices.Clone(raw)
			flipped[at] ^= 1 << bit
			read, err := readSnapshot(bytes.NewReader(flipped), hive, nil)
			if err == nil {
				// A bit of the compression that makes no difference.
				require.Equal(t, headerOf(wire.Identities, wire.Endpoints), read, "byte %d, bit %d", at, bit)
				content := held{}
				_, err = readSnapshot(bytes.NewReader(flipped), hive, content.take)
				require.NoError(t, err)
				require.Len(t, content[wire.Endpoints], sampled)
				continue
			}
			require.True(t, errors.Is(err, errSnapshotTorn) || errors.Is(err, errSnapshotVersion), "byte %d, bit %d: %v", at, bit, err)
		}
	}
}

func TestSnapshotForeign(t *testing.T) {
	for name, test := range map[string]struct {
		raw  []byte
		want error
		text string
	}{
		"another name":        {encoded(t, func() snapshotHeader { h := headerOf(); h.Cluster = "swarm"; return h }(), nil), errSnapshotForeign, `"swarm", ID 7`},
		"another ID":          {encoded(t, func() snapshotHeader { h := headerOf(); h.ClusterID = 8; return h }(), nil), errSnapshotForeign, `"hive", ID 8`},
		"another version":     {[]byte("waggle snapshot 2\nwhatever follows"), errSnapshotVersion, `"2"`},
		"something else":      {[]byte("#!/bin/sh\necho none of ours\n"), errSnapshotTorn, "begin"},
		"nothing":             {nil, errSnapshotTorn, "too early"},
		"an unknown resource": {encoded(t, headerOf("serviceexports"), nil), errSnapshotTorn, "serviceexports"},
		"a resource twice":    {encoded(t, headerOf(wire.Nodes, wire.Nodes), nil), errSnapshotTorn, "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readSnapshot(bytes.NewReader(test.raw), hive, nil)
			require.ErrorIs(t, err, test.want)
			require.ErrorContains(t, err, test.text)
		})
	}
}

// FuzzSnapshot reads whatever there is without a panic or an allocation that the file
// doesn't pay for, and the second time as the first.
func FuzzSnapshot(f *testing.F) {
	raw := sample(f)
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Add(raw[:len(snapshotMagic)])
	f.Add([]byte("waggle snapshot 2\n"))
	flipped := slices.Clone(raw)
	flipped[len(flipped)/2] ^= 1
	f.Add(flipped)
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := readSnapshot(bytes.NewReader(raw), hive, nil)
		_, again := readSnapshot(bytes.NewReader(raw), hive, held{}.take)
		require.Equal(t, err == nil, again == nil, "%v, %v", err, again)
		if err != nil {
			known := errors.Is(err, errSnapshotTorn) || errors.Is(err, errSnapshotVersion) || errors.Is(err, errSnapshotForeign)
			require.True(t, known, "%v", err)
		}
	})
}

// TestSnapshotFile replaces a file as a whole or not at all.
func TestSnapshotFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by", "it")
	file := newSnapshotFile(dir)
	_, err := file.open(hive)
	require.ErrorIs(t, err, os.ErrNotExist)
	content := held{wire.Nodes: {{Key: "a", Value: []byte("1")}}}
	size, err := file.write(headerOf(wire.Nodes), content.entries)
	require.NoError(t, err)

	// One that fails halfway leaves the old one, and nothing else.
	broken := errors.New("broken")
	_, err = file.write(headerOf(wire.Nodes), func(wire.Resource, func(ingest.Entry) error) error { return broken })
	require.ErrorIs(t, err, broken)
	require.Equal(t, []string{snapshotFileName}, names(t, dir))

	// One that was killed leaves its own, which the next process removes.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "."+snapshotFileName+"123"), nil, 0o600))
	require.NoError(t, file.clean())
	require.Equal(t, []string{snapshotFileName}, names(t, dir))

	loaded, err := file.open(hive)
	require.NoError(t, err)
	defer loaded.close()
	require.Equal(t, size, loaded.size)
	// What is read is what was checked.
	_, err = file.write(headerOf(), nil)
	require.NoError(t, err)
	got := held{}
	require.NoError(t, loaded.entries(hive, got.take))
	require.Equal(t, content, got)

	info, err := os.Stat(file.path)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm(), "it holds labels and addresses of all pods")
	require.NoError(t, file.discard())
	require.Empty(t, names(t, dir))
}

func names(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// endpointEntries are endpoints as an etcd has them.
func endpointEntries(t require.TestingT, count int) []ingest.Entry {
	random := rand.New(rand.NewPCG(1, 2))
	entries := make([]ingest.Entry, count)
	for i := range entries {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		ep := wire.Endpoint{Prefix: netip.PrefixFrom(addr, 32), HostIP: netip.AddrFrom4([4]byte{192, 168, byte(i >> 15), byte(i >> 7)}),
			Identity: 256 + random.Uint32N(5000), Namespace: fmt.Sprint("namespace-", i%300), ServiceAccount: "default",
			Pod: fmt.Sprintf("deployment-%d-%08x-%05x", i%3000, random.Uint32(), random.Uint32N(1<<20))}
		value, err := wire.MarshalEndpoint(&ep)
		require.NoError(t, err)
		entries[i] = ingest.Entry{Key: wire.EndpointKey(ep.Prefix), Value: value}
	}
	return entries
}

// BenchmarkSnapshotFormat writes and reads 100,000 endpoints, without the tables.
func BenchmarkSnapshotFormat(b *testing.B) {
	const count = 100_000
	content := held{wire.Endpoints: endpointEntries(b, count)}
	header := headerOf(wire.Endpoints)
	raw := encoded(b, header, content)
	plain := 0
	for _, e := range content[wire.Endpoints] {
		plain += len(e.Key) + len(e.Value)
	}
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			require.NoError(b, writeSnapshot(io.Discard, header, content.entries))
		}
		b.ReportMetric(float64(len(raw))/count, "bytes/endpoint")
		b.ReportMetric(float64(plain)/count, "plain-bytes/endpoint")
	})
	b.Run("check", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, err := readSnapshot(bytes.NewReader(raw), hive, nil)
			require.NoError(b, err)
		}
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, err := readSnapshot(bytes.NewReader(raw), hive, func(wire.Resource, []ingest.Entry) error { return nil })
			require.NoError(b, err)
		}
	})
}
