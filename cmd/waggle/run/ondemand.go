// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/waggle-mesh/waggle/ipcache/ondemand"
)

// AgentShells are the sockets of the shells of a run's agents.
func (l Layout) AgentShells() (sockets []string) {
	for _, place := range l.Clusters {
		sockets = append(sockets, place.Shells[partAgent])
	}
	return sockets
}

// OnDemand asks agents for what they have resolved on demand. The error joins those of
// the agents that can't tell.
func OnDemand(sockets []string) (lists []ondemand.List, err error) {
	lists = []ondemand.List{}
	for _, socket := range sockets {
		out, problem := ask(socket, "ondemand/list -o json")
		var list ondemand.List
		if problem == nil {
			if json.Unmarshal([]byte(out), &list) != nil {
				// The shell prints why a command failed where its output would be.
				problem = errors.New(strings.TrimSpace(out))
			}
		}
		if problem != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", socket, problem))
			continue
		}
		lists = append(lists, list)
	}
	return lists, err
}
