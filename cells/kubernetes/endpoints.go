// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"
	"net/netip"

	"github.com/cilium/cilium/api/v1/models"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// claim is one address as one endpoint of an object has it. pod is empty where
// the object is the endpoint.
type claim struct {
	pod      string
	endpoint wire.Endpoint
}

// claimKey is what is remembered of a claim, to withdraw it.
type claimKey struct {
	pod    string
	prefix netip.Prefix
}

// convertEndpoint gives the claims of a CiliumEndpoint, one for each address.
// Without networking it has none, which is how every endpoint begins. An
// endpoint without an identity claims its addresses with identity 0, as
// upstream writes them.
func convertEndpoint(obj *ciliumv2.CiliumEndpoint, report report) ([]claim, bool) {
	status := &obj.Status
	endpoint := wire.Endpoint{
		EncryptionKey:  uint8(status.Encryption.Key),
		Namespace:      obj.Namespace,
		Pod:            obj.Name,
		ServiceAccount: status.ServiceAccount,
		NamedPorts:     convertNamedPorts(status.NamedPorts),
	}
	if status.Identity != nil {
		endpoint.Identity = uint32(status.Identity.ID)
	}
	if status.Networking == nil {
		return nil, true
	}
	return appendClaims(nil, "", endpoint, status.Networking, report), true
}

// appendClaims adds a claim on each address of networking. A malformed address
// is reported and left out; the others count.
func appendClaims(claims []claim, pod string, endpoint wire.Endpoint, networking *ciliumv2.EndpointNetworking, report report) []claim {
	if networking.NodeIP != "" {
		host, err := parseAddress(networking.NodeIP)
		if err != nil {
			report(problemAddress, fmt.Errorf("node address of endpoint %s: %w", endpoint.Pod, err))
		}
		endpoint.HostIP = host
	}
	for _, pair := range networking.Addressing {
		if pair == nil {
			continue
		}
		for _, text := range [...]string{pair.IPV4, pair.IPV6} {
			if text == "" {
				continue
			}
			ip, err := parseAddress(text)
			if err != nil {
				report(problemAddress, fmt.Errorf("address of endpoint %s: %w", endpoint.Pod, err))
				continue
			}
			endpoint.Prefix = state.PrefixOf(ip)
			claims = append(claims, claim{pod: pod, endpoint: endpoint})
		}
	}
	return claims
}

// parseAddress takes what upstream's net.ParseIP takes: no zones, and an IPv4
// address in IPv6 clothes is the IPv4 address.
func parseAddress(text string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, err
	}
	if ip.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q has a zone", text)
	}
	return ip.Unmap(), nil
}

func convertNamedPorts(ports models.NamedPorts) []wire.NamedPort {
	if len(ports) == 0 {
		return nil
	}
	out := make([]wire.NamedPort, 0, len(ports))
	for _, port := range ports {
		if port != nil {
			out = append(out, wire.NamedPort{Name: port.Name, Port: port.Port, Protocol: port.Protocol})
		}
	}
	return out
}

// applyClaims writes the claims of one object, and withdraws those that it had
// and has no more. New claims come first: an address that changes hands within
// the object keeps its row.
func applyClaims(origin *state.Origin, ownerPrefix string) apply[[]claim, []claimKey] {
	return func(tx *state.Txn, c change[[]claim], old memory[[]claimKey]) []claimKey {
		owner := state.Owner{Object: ownerPrefix + c.object}
		var now []claimKey
		if len(c.rows) > 0 {
			now = make([]claimKey, 0, len(c.rows))
		}
		for i := range c.rows {
			owner.Pod = c.rows[i].pod
			tx.UpsertEndpoint(origin, owner, c.rows[i].endpoint)
			now = append(now, claimKey{pod: owner.Pod, prefix: c.rows[i].endpoint.Prefix})
		}
		withdrawn(old.value, now, func(gone claimKey) {
			owner.Pod = gone.pod
			tx.DeleteEndpoint(origin, owner, gone.prefix)
		})
		return now
	}
}

// smallObject is the number of claims up to which comparing each with each is
// cheaper than a set; every CiliumEndpoint is small.
const smallObject = 8

// withdrawn calls gone for each claim of old that isn't in now.
func withdrawn(old, now []claimKey, gone func(claimKey)) {
	has := func(key claimKey) bool {
		for _, k := range now {
			if k == key {
				return true
			}
		}
		return false
	}
	if len(now) > smallObject {
		set := make(map[claimKey]struct{}, len(now))
		for _, k := range now {
			set[k] = struct{}{}
		}
		has = func(key claimKey) bool { _, ok := set[key]; return ok }
	}
	for _, key := range old {
		if !has(key) {
			gone(key)
		}
	}
}
