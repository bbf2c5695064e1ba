// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package standin stands in for what upstream's agent watches all over its cluster,
// where the tables have it from the in-cluster cache (--datastore=etcd). Whoever of the
// agent reads endpoints, nodes and identities then reads the tables, and no watch on
// them is opened at the API server, be it at the start or by an informer that somebody
// needs later:
//
//	resource groups  ─ without those of endpoints and nodes ─▶ upstream's watchers
//	Table "endpoints" ─▶ CiliumEndpoints, CiliumEndpointSlices ─▶ upstream's Resource
//	Table "nodes" ─▶ CiliumNodes ─▶ upstream's Resource
//	Table "identities" + what this agent has created ─▶ List, Watch ─▶ upstream's allocator
//
// What the agent writes goes to Kubernetes, as do questions for single objects, and the
// watch on its own CiliumNode stays.
//
//	cell.go        what is decorated, and when
//	groups.go      the watches that aren't started
//	served.go      List and Watch of objects that are in no API server
//	feed.go        the changes of a table as those of objects
//	endpoints.go   endpoints as CiliumEndpoints and as slices
//	nodes.go       nodes as CiliumNodes
//	local.go       the endpoints of one node
//	resource.go    upstream's Resource of endpoints
//	identities.go  identities as CiliumIdentities
//	written.go     endpoints that this agent has written, whether or not the table has them
//	endpointclient.go  upstream's client that notes them
//	created.go     those that this agent has created
//	clientset.go   upstream's client with them in it
//
// With any other --datastore nothing is decorated.
package standin
