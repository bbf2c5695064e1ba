// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import "fmt"

// Preferring is the name of a node that prefers the first of these addresses.
func Preferring(addresses ...string) string {
	replicas := make([]replica, len(addresses))
	for i, address := range addresses {
		replicas[i].address = address
	}
	for i := 0; ; i++ {
		if node := fmt.Sprintf("node-%d", i); ranked(node, replicas)[0] == replicas[0] {
			return node
		}
	}
}
