// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/testing/relay"
)

// TestOutage tells each reason once in each outage.
func TestOutage(t *testing.T) {
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var o outage
	_, was := o.over()
	require.False(t, was)
	for range 2 {
		require.True(t, o.failed(began, errors.New("refused")))
		require.False(t, o.failed(began.Add(time.Second), errors.New("refused")))
		require.True(t, o.failed(began.Add(time.Second), errors.New("listing: read tcp 10.0.0.1:4000->10.0.0.2:2379: reset")))
		require.False(t, o.failed(began.Add(time.Second), errors.New("refused")))
		require.False(t, o.failed(began.Add(time.Second), errors.New("listing: read tcp 10.0.0.1:4001->10.0.0.2:2379: reset")))
		since, was := o.over()
		require.True(t, was)
		require.Equal(t, began, since)
	}
	news := 0
	for i := range 100 {
		if o.failed(began, fmt.Errorf("attempt %d", i)) {
			news++
		}
	}
	require.Equal(t, maxReasons, news)
}

// lines is a log of lines of JSON, which can be read while it is written.
type lines struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(p)
}

type line struct {
	Level, Msg, Prefix, Error string
	InterruptedSince          time.Time `json:"interrupted-since"`
}

// at gives the lines of a level.
func (l *lines) at(t *testing.T, level slog.Level) (out []line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for text := range bytes.Lines(l.out.Bytes()) {
		var one line
		require.NoError(t, json.Unmarshal(text, &one))
		if one.Level == level.String() {
			out = append(out, one)
		}
	}
	return out
}

// TestOutageInLog has a Reader's etcd go away and come back: the log has each reason once,
// over however many attempts, and that it is over.
func TestOutageInLog(t *testing.T) {
	server := startServer(t, ServerConfig{}).URL()
	there, writes := strings.TrimPrefix(server, "http://"), clientAt(t, time.Minute, server)
	r, err := relay.Listen("127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(r.Close)
	r.Aim(there)
	var log lines
	began := time.Now()
	var watched atomic.Int64
	reader := NewReader(ReaderConfig{Log: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Prefix: "p/", RelistJitter: -1}, ObserverFunc(func(_ context.Context, b Batch) {
		if !b.Listing && len(b.Events) > 0 {
			watched.Add(1)
		}
	}))
	startReader(t, reader, clientAt(t, time.Minute, "http://"+r.Address()))
	require.Eventually(t, reader.Synced, patience, tick)
	require.Empty(t, log.at(t, slog.LevelWarn))

	for outages, quiet := 1, 0; outages <= 2; outages++ {
		before := len(log.at(t, slog.LevelWarn))
		put(t, writes, "p/a", strconv.Itoa(outages))
		require.Eventually(t, func() bool { return watched.Load() == int64(outages) }, patience, tick, "its watch is there")
		r.Aim("")
		require.Eventually(t, func() bool { return len(log.at(t, slog.LevelDebug)) >= quiet+2 }, patience, tick)
		require.Len(t, log.at(t, slog.LevelInfo), outages-1)
		r.Aim(there)
		require.Eventually(t, func() bool { return len(log.at(t, slog.LevelInfo)) == outages }, patience, tick)
		over := log.at(t, slog.LevelInfo)[outages-1]
		require.Equal(t, "Following etcd prefix again", over.Msg)
		require.Equal(t, "p/", over.Prefix)
		require.True(t, over.InterruptedSince.After(began))
		quiet, began = len(log.at(t, slog.LevelDebug)), time.Now()
		told := map[string]bool{}
		for _, warning := range log.at(t, slog.LevelWarn)[before:] {
			reason := ownPort.ReplaceAllString(warning.Error, "")
			require.False(t, told[reason], reason)
			told[reason] = true
		}
		require.NotEmpty(t, told)
	}
}

// TestOutageOfWriter likewise has a Writer's.
func TestOutageOfWriter(t *testing.T) {
	there := strings.TrimPrefix(startServer(t, ServerConfig{}).URL(), "http://")
	r, err := relay.Listen("127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(r.Close)
	var log lines
	w := NewWriter(slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		clientAt(t, time.Minute, "http://"+r.Address()))
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer running.Wait()
	defer cancel()
	running.Go(func() { assert.NoError(t, w.Run(ctx)) })
	scope := w.Scope(ScopeConfig{Prefix: "p/"})
	scope.Apply([]Op{{Key: "a", Value: []byte("1")}})
	require.Eventually(t, func() bool { return len(log.at(t, slog.LevelDebug)) >= 2 }, patience, tick)
	require.NotEmpty(t, log.at(t, slog.LevelWarn))
	require.Empty(t, log.at(t, slog.LevelInfo))
	r.Aim(there)
	require.NoError(t, scope.Barrier(t.Context()))
	over := log.at(t, slog.LevelInfo)
	require.Len(t, over, 1)
	require.Equal(t, "Writing to etcd again", over[0].Msg)
}
