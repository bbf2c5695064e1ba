// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/cilium/hive/shell"

	"github.com/waggle-mesh/waggle/cells/state"
)

// errAway says that a process can't be asked now.
var errAway = errors.New("not running")

// errSilent says that a process is there, and doesn't answer.
var errSilent = errors.New("no answer")

// askTimeout is how long a process may take to answer: the longest list is one of half a
// million rows.
const askTimeout = 5 * time.Second

// explainTimeout is that of what asks etcds in its turn, of which each may be away.
const explainTimeout = time.Minute

// ask runs one command in the shell of a process and gives its output.
func ask(socket, command string) (string, error) { return askWithin(askTimeout, socket, command) }

// askWithin is ask for a command that takes another time.
func askWithin(timeout time.Duration, socket, command string) (string, error) {
	// The shell's client waits for a server that isn't there; we want to know.
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errAway, err)
	}
	conn.Close()
	type answer struct {
		out string
		err error
	}
	answered := make(chan answer, 1)
	// The client has no deadline, and waits for a process that is stopped, as the kernel
	// takes the connection for it. It ends with the process, or when that goes on.
	go func() {
		var out bytes.Buffer
		err := shell.ShellExchange(shell.Config{ShellSockPath: socket}, &out, "%s", command)
		answered <- answer{out.String(), err}
	}()
	select {
	case a := <-answered:
		if a.err != nil {
			return "", fmt.Errorf("%s: %w", command, a.err)
		}
		return a.out, nil
	case <-time.After(timeout):
		return "", fmt.Errorf("%w within %v", errSilent, timeout)
	}
}

// remoteClusters reads the table of remote clusters of a process, by name.
func remoteClusters(socket string) (map[string]state.RemoteCluster, error) {
	out, err := ask(socket, "db/show --format=json remote-clusters")
	if err != nil {
		return nil, err
	}
	rows := make(map[string]state.RemoteCluster)
	decoder := json.NewDecoder(strings.NewReader(out))
	for {
		var row state.RemoteCluster
		err := decoder.Decode(&row)
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the table of remote clusters: %w", err)
		}
		rows[row.Name] = row
	}
}

// mapEntry is what an ipcache map says about an address.
type mapEntry struct {
	identity, tunnel string
	text             string // as the shell printed it
}

var mapEntryFormat = regexp.MustCompile(`identity=(\d+) .*tunnelendpoint=(\S+)`)

// lookup asks an agent's map about an address, as the datapath would.
func lookup(socket string, addr netip.Addr) (mapEntry, error) {
	out, err := ask(socket, "ipcache/get "+addr.String())
	if err != nil {
		return mapEntry{}, err
	}
	match := mapEntryFormat.FindStringSubmatch(out)
	if match == nil {
		return mapEntry{text: strings.TrimSpace(out)}, nil
	}
	return mapEntry{identity: match[1], tunnel: match[2], text: strings.TrimSpace(out)}, nil
}

// health reads one module's health lines of a process that contain any of the
// given words.
func health(socket string, words ...string) []string {
	out, err := ask(socket, "db/show health")
	if err != nil {
		return nil
	}
	var lines []string
	for line := range strings.Lines(out) {
		for _, word := range words {
			if strings.Contains(line, word) {
				lines = append(lines, strings.TrimSpace(line))
				break
			}
		}
	}
	return lines
}

// poll calls done until it says yes or ctx ends, without a pause of its own: each
// call is a round trip to another process.
func poll(ctx context.Context, done func() bool) error {
	for !done() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
