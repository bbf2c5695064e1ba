// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

var home = wire.ClusterInfo{Name: "default", MaxConnectedClusters: 255}

// memorySnapshot is what a process has left to the next one.
type memorySnapshot struct {
	positions []SavedPosition
	entries   map[wire.Resource][]Entry
	rows      map[string]string // the tables', when it was taken
	waiting   int
	etcd      int
}

// at is the position in a resource; nil is none.
func (s *memorySnapshot) at(resource wire.Resource) *etcd.Position {
	for i := range s.positions {
		if s.positions[i].Resource == resource {
			return &s.positions[i].Position
		}
	}
	return nil
}

func snapshotOf(t require.TestingT, saved *Saved) *memorySnapshot {
	s := &memorySnapshot{positions: saved.Positions(), entries: map[wire.Resource][]Entry{},
		rows: rowsOf(saved.tables, saved.txn), waiting: len(saved.waiting)}
	for _, at := range s.positions {
		require.NoError(t, saved.Entries(at.Resource, func(e Entry) error {
			e.Value = slices.Clone(e.Value)
			s.entries[at.Resource] = append(s.entries[at.Resource], e)
			return nil
		}))
	}
	return s
}

// process is the ingest of this cluster in one process.
type process struct {
	local *Local
	db    *statedb.DB
	stop  func()
	// gone are the addresses that were seen to leave the table.
	gone func() map[string]bool
	from int64
}

// newProcess makes one from what an earlier one has left, nil if that is nothing.
func newProcess(t require.TestingT, from *memorySnapshot) *process {
	p := &process{db: statedb.New()}
	writer, err := state.NewWriter(p.db)
	require.NoError(t, err)
	// An endpoint waits for its identity as long as it takes.
	p.local = NewLocal(Options{Log: slog.New(slog.DiscardHandler), Writer: writer, Local: home,
		HoldTimeout: time.Hour, RelistJitter: -1, statusInterval: time.Millisecond})
	if from != nil {
		for _, at := range from.positions {
			for part := range slices.Chunk(from.entries[at.Resource], 3) {
				require.NoError(t, p.local.Restore(at.Resource, part))
			}
		}
		for _, at := range from.positions {
			require.NoError(t, p.local.Resume(at))
		}
	}
	return p
}

func (p *process) tables() state.Tables { return p.local.handler.options.Writer.Tables() }

func (p *process) rows() map[string]string { return rowsOf(p.tables(), p.db.ReadTxn()) }

// start follows an etcd, and what leaves the table of endpoints.
func (p *process) start(t require.TestingT, client *etcd.Client) {
	wtxn := p.db.WriteTxn(p.tables().Endpoints)
	changes, err := p.tables().Endpoints.Changes(wtxn)
	require.NoError(t, err)
	wtxn.Commit()
	var (
		mu   sync.Mutex
		gone = map[string]bool{}
	)
	p.gone = func() map[string]bool {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(gone)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = p.local.Run(ctx, client, wire.CacheResources) })
	running.Go(func() {
		for {
			seq, watch := changes.Next(p.db.ReadTxn())
			mu.Lock()
			for change := range seq {
				if change.Deleted {
					gone[change.Object.Prefix().Addr().String()] = true
				}
			}
			mu.Unlock()
			select {
			case <-watch:
			case <-ctx.Done():
				return
			}
		}
	})
	p.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
}

// rowsOf are the rows of endpoints and identities as text.
func rowsOf(tables state.Tables, txn statedb.ReadTxn) map[string]string {
	rows := map[string]string{}
	for ep := range tables.Endpoints.All(txn) {
		rows[ep.Prefix().Addr().String()] = fmt.Sprint(ep.Identity(), " ", ep.Pod())
	}
	for id := range tables.Identities.All(txn) {
		rows[fmt.Sprint(id.ID)] = id.Labels
	}
	return rows
}

// TestSavedAgainstModel takes snapshots of an agent at random points of random
// histories and starts another one from them: at the same etcd, at one that has lost
// its history, at another one of the same cluster ID. Endpoints come before their
// identities, and values that are refused in between. Each time the tables are at once
// what they were, count as initialized only once they are what the etcd has, and no
// address leaves them that was there all the time.
func TestSavedAgainstModel(t *testing.T) {
	m := &savedModel{T: t}
	for range 2 {
		server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0", Token: "same"})
		require.NoError(t, err)
		t.Cleanup(server.Close)
		client, err := etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{Endpoints: []string{server.URL()}})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		m.clients = append(m.clients, client)
		m.do(client, clientv3.OpPut("x", "1"))
		for _, resource := range wire.CacheResources {
			m.do(client, clientv3.OpPut(wire.CanaryKey(resource, home.Name, false), "now"))
		}
	}
	for range 200 { // the second is ahead of the first, and then falls behind
		m.do(m.clients[1], clientv3.OpPut("x", "1"))
	}
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		// Most of a second goes by in each, until etcd has looked after its watches.
		if runs++; runs <= 25 {
			m.check(t)
		}
	})
}

// savedModel is two etcds and what they hold.
type savedModel struct {
	*testing.T
	clients []*etcd.Client
	// source is what each has, refused what of it won't be taken in.
	source  [2]map[string]string
	refused [2]map[string]bool
	current int
	// revision is the last one of each, absent the last at which an address wasn't
	// there, or was refused.
	revision [2]int64
	absent   [2]map[string]int64
}

func (m *savedModel) do(client *etcd.Client, op clientv3.Op) int64 {
	resp, err := client.Etcd().Do(context.Background(), op)
	require.NoError(m, err)
	switch {
	case resp.Put() != nil:
		return resp.Put().Header.Revision
	case resp.Del() != nil:
		return resp.Del().Header.Revision
	}
	return 0
}

var modelAddresses = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"}

var modelIdentities = []uint32{300, 301, 302}

func (m *savedModel) put(i int, key, row, value string) {
	resource := wire.Identities
	if strings.Contains(key, ".") {
		resource = wire.Endpoints
	}
	m.source[i][key], m.refused[i][key] = row, row == ""
	m.revision[i] = m.do(m.clients[i], clientv3.OpPut(wire.StatePrefix(resource, home.Name)+key, value))
}

func (m *savedModel) putIdentity(i int, id uint32) {
	labels := fmt.Sprintf("k8s:app=%d;k8s:io.cilium.k8s.policy.cluster=%s;", id, home.Name)
	m.put(i, fmt.Sprint(id), labels, labels)
}

func (m *savedModel) putEndpoint(i int, address string, id uint32, pod string) {
	value, err := wire.MarshalEndpoint(&wire.Endpoint{
		Prefix: netip.MustParsePrefix(address + "/32"), Identity: id, Namespace: "shop", Pod: pod})
	require.NoError(m, err)
	m.put(i, address, fmt.Sprint(id, " ", pod), string(value))
}

func (m *savedModel) remove(i int, key string) {
	resource := wire.Identities
	if strings.Contains(key, ".") {
		resource = wire.Endpoints
	}
	delete(m.source[i], key)
	m.revision[i] = m.do(m.clients[i], clientv3.OpDelete(wire.StatePrefix(resource, home.Name)+key))
}

// change makes some random changes.
func (m *savedModel) change(t *rapid.T) {
	i := m.current
	for range rapid.IntRange(0, 5).Draw(t, "changes") {
		address := rapid.SampledFrom(modelAddresses).Draw(t, "address")
		id := rapid.SampledFrom(modelIdentities).Draw(t, "identity")
		switch rapid.SampledFrom([]string{"endpoint", "endpoint", "endpoint", "delete", "refused", "identity", "identity gone"}).Draw(t, "kind") {
		case "endpoint":
			m.putEndpoint(i, address, id, rapid.SampledFrom([]string{"web", "db"}).Draw(t, "pod"))
		case "delete":
			m.remove(i, address)
		case "refused":
			m.put(i, address, "", "no JSON")
		case "identity":
			m.putIdentity(i, id)
		case "identity gone":
			m.remove(i, fmt.Sprint(id))
		}
		m.note()
	}
}

// note remembers what isn't there.
func (m *savedModel) note() {
	for _, address := range modelAddresses {
		if row, ok := m.source[m.current][address]; !ok || row == "" {
			m.absent[m.current][address] = m.revision[m.current]
		}
	}
}

func (m *savedModel) check(t *rapid.T) {
	for i := range m.clients {
		m.source[i], m.refused[i], m.absent[i] = map[string]string{}, map[string]bool{}, map[string]int64{}
		for _, resource := range []wire.Resource{wire.Endpoints, wire.Identities} {
			m.revision[i] = m.do(m.clients[i], clientv3.OpDelete(wire.StatePrefix(resource, home.Name), clientv3.WithPrefix()))
		}
	}
	m.current = 0
	var saved *memorySnapshot
	for range rapid.IntRange(1, 3).Draw(t, "restarts") {
		p := m.start(t, saved)
		if rapid.Bool().Draw(t, "catch up first") {
			require.Eventually(t, func() bool { return m.synced(p) }, patience, tick)
		}
		m.change(t)
		if rapid.Bool().Draw(t, "catch up") {
			require.Eventually(t, func() bool { return m.caughtUp(p) }, patience, tick)
		}
		if rapid.Bool().Draw(t, "stop first") {
			p.stop()
		}
		if now := p.local.Save(); now != nil {
			next := snapshotOf(t, now)
			next.etcd = m.current
			if saved != nil && reflect.DeepEqual(saved.at(wire.Endpoints), next.at(wire.Endpoints)) {
				next.etcd = saved.etcd // it was stopped before it had read anything of this one
			}
			saved = next
		}
		m.change(t) // what it has no more part in, or knows nothing of any more
		p.stop()
		m.kept(t, p)
		switch rapid.SampledFrom([]string{"same", "same", "compacted", "other"}).Draw(t, "etcd") {
		case "compacted":
			revision := m.do(m.clients[m.current], clientv3.OpPut("x", "1"))
			_, err := m.clients[m.current].Etcd().Compact(context.Background(), revision)
			require.NoError(t, err)
		case "other":
			m.current = 1 - m.current
			m.change(t)
		}
	}
	// In the end all is well: nothing is refused, and nothing has to wait.
	p := m.start(t, saved)
	defer p.stop()
	for _, id := range modelIdentities {
		m.putIdentity(m.current, id)
	}
	for _, address := range modelAddresses {
		if m.refused[m.current][address] {
			m.note()
			m.putEndpoint(m.current, address, 300, "mended")
		}
	}
	want := m.source[m.current]
	require.Eventually(t, func() bool { return maps.Equal(want, p.rows()) }, patience, tick, "%v", want)
	select {
	case <-p.local.Ready():
	case <-time.After(patience):
		require.Fail(t, "not ready")
	}
	m.kept(t, p)
}

// start starts a process and looks at what it has before it has read anything.
func (m *savedModel) start(t *rapid.T, saved *memorySnapshot) *process {
	p := newProcess(t, saved)
	if saved != nil {
		require.Equal(t, saved.rows, p.rows(), "what there was is there again at once")
		require.Equal(t, saved.waiting, p.local.handler.held.len())
		again := p.local.Save()
		require.NotNil(t, again)
		require.Equal(t, saved.positions, again.Positions())
		require.Equal(t, saved.entries, snapshotOf(t, again).entries, "a snapshot of a snapshot is the same")
	}
	done, _ := p.tables().Endpoints.Initialized(p.db.ReadTxn())
	require.False(t, done)
	// What it may tell of begins at its position, or with what there is now.
	p.from = m.revision[m.current]
	if saved != nil && saved.etcd == m.current {
		if at := saved.at(wire.Endpoints); at != nil {
			p.from = at.Revision
		}
	}
	m.note()
	p.start(t, m.clients[m.current])
	return p
}

// synced says whether the etcd has confirmed all resources.
func (m *savedModel) synced(p *process) bool {
	p.local.handler.mu.Lock()
	defer p.local.handler.mu.Unlock()
	for _, s := range p.local.handler.streams {
		if s.enabled && !s.reader.Synced() {
			return false
		}
	}
	return len(p.local.handler.streams) > 0
}

// caughtUp says whether all was delivered.
func (m *savedModel) caughtUp(p *process) bool {
	saved := p.local.Save()
	if saved == nil || !m.synced(p) {
		return false
	}
	rows, held := p.rows(), map[string]bool{}
	for i := range saved.waiting {
		held[saved.waiting[i].Prefix.Addr().String()] = true
	}
	for key, row := range m.source[m.current] {
		if rows[key] != row && !held[key] && !m.refused[m.current][key] {
			return false
		}
	}
	leaving := map[string]bool{}
	for id := range saved.tables.Identities.All(saved.txn) {
		leaving[fmt.Sprint(id.ID)] = id.Leaving
	}
	for key := range rows {
		if _, ok := m.source[m.current][key]; !ok && !leaving[key] {
			return false
		}
	}
	return true
}

// kept checks that what was in the etcd all the time was in the table all the time.
func (m *savedModel) kept(t *rapid.T, p *process) {
	for address := range p.gone() {
		require.GreaterOrEqual(t, m.absent[m.current][address], p.from, "%s left the table", address)
	}
}
