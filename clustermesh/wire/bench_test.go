// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import "testing"

// BenchmarkCheck is what is looked into for each entry beside its decoding: the
// key alone in KVStoreMesh, the value in an agent.
func BenchmarkCheck(b *testing.B) {
	v := NewValidator("east", 7, 511)
	e := podEndpoint()
	key := EndpointKey(e.Prefix)
	e.Identity = IdentityRangeFor(7, 511).Min + MinIdentity
	node := ofUpstream(upstreamNode(fullCiliumNode()))
	id := Identity{ID: e.Identity, Labels: "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=east;k8s:io.kubernetes.pod.namespace=shop;"}
	for name, check := range map[string]func() error{
		"endpoint-key": func() error { return v.CheckKey(Endpoints, key) },
		"node-key":     func() error { return v.CheckKey(Nodes, node.Name) },
		"endpoint":     func() error { return v.CheckEndpoint(key, &e) },
		"node":         func() error { return v.CheckNode(&node) },
		"identity":     func() error { return v.CheckIdentity(&id) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := check(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDecodeNode is the decoding of one node: in the usual form, and in any
// other.
func BenchmarkDecodeNode(b *testing.B) {
	node := plainNode()
	value, err := MarshalNode(&node)
	if err != nil {
		b.Fatal(err)
	}
	for name, value := range map[string][]byte{"usual": value, "any": append([]byte(" "), value...)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := DecodeNode(node.Name, value); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMarshalNode is the encoding of one node.
func BenchmarkMarshalNode(b *testing.B) {
	node := ofUpstream(upstreamNode(fullCiliumNode()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := MarshalNode(&node); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecodeIdentity is the decoding of one identity.
func BenchmarkDecodeIdentity(b *testing.B) {
	value := []byte("k8s:app=web;k8s:io.cilium.k8s.policy.cluster=east;k8s:io.kubernetes.pod.namespace=shop;")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeIdentity("459008", value); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecodeService is the decoding of one service of two backends.
func BenchmarkDecodeService(b *testing.B) {
	service := globalService()
	value, err := MarshalService(service)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeService("shop/web", value); err != nil {
			b.Fatal(err)
		}
	}
}
