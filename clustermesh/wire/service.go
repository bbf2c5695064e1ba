// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/cilium/pkg/clustermesh/store"
)

// ServiceKey is the key of a service or of a service export, below the prefix
// of its cluster.
func ServiceKey(namespace, name string) string { return namespace + "/" + name }

// MarshalService gives the value of a service, which is upstream's own.
func MarshalService(s *Service) ([]byte, error) {
	value, err := s.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding service %s: %w", s, err)
	}
	return value, nil
}

// DecodeService decodes the value at a key, which is ServiceKey. The error is a
// *Refusal: ReasonMalformed or ReasonKeyMismatch. Whether the cluster may say
// that is up to a Validator.
func DecodeService(key string, value []byte) (*Service, error) {
	// Not upstream's own Unmarshal: its check of the cluster's ID depends on the
	// process's global configuration.
	s := store.NewClusterService("", "")
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, refuse(Services, key, ReasonMalformed, "%w", err)
	}
	if err := checkNames(s.Cluster, s.Namespace, s.Name); err != nil {
		return nil, refuse(Services, key, ReasonMalformed, "%w", err)
	}
	if got := ServiceKey(s.Namespace, s.Name); got != key {
		return nil, refuse(Services, key, ReasonKeyMismatch, "the value is that of %q", got)
	}
	if err := checkPorts(s.Frontends); err != nil {
		return nil, refuse(Services, key, ReasonMalformed, "frontends: %w", err)
	}
	if err := checkPorts(s.Backends); err != nil {
		return nil, refuse(Services, key, ReasonMalformed, "backends: %w", err)
	}
	return &s, nil
}

// checkNames refuses a service that leaves one of its names out.
func checkNames(cluster, namespace, name string) error {
	switch {
	case cluster == "":
		return errors.New("it names no cluster")
	case namespace == "":
		return errors.New("it names no namespace")
	case name == "":
		return errors.New("it has no name")
	}
	return nil
}

// checkPorts refuses keys that are not addresses, and ports that are null:
// whoever reads them follows the pointer.
func checkPorts(byAddress map[string]store.PortConfiguration) error {
	for address, ports := range byAddress {
		if _, err := netip.ParseAddr(address); err != nil {
			return err
		}
		for name, port := range ports {
			if port == nil {
				return fmt.Errorf("port %q of %s is null", name, address)
			}
		}
	}
	return nil
}

// MarshalServiceExport gives the value of a service export, which is upstream's
// own: with labels and annotations a second time, under the names that older
// versions read. e is not modified.
func MarshalServiceExport(e *ServiceExport) ([]byte, error) {
	legacy := *e // upstream's Marshal sets the legacy fields of its receiver
	value, err := legacy.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding service export %s/%s/%s: %w", e.Cluster, e.Namespace, e.Name, err)
	}
	return value, nil
}

// DecodeServiceExport decodes the value at a key, which is ServiceKey, and
// checks it as upstream does: type, session affinity, traffic policies. The
// error is a *Refusal: ReasonMalformed or ReasonKeyMismatch. Whether the cluster
// may say that is up to a Validator.
func DecodeServiceExport(key string, value []byte) (*ServiceExport, error) {
	e := new(ServiceExport)
	if err := e.Unmarshal(key, value); err != nil {
		return nil, refuse(ServiceExports, key, ReasonMalformed, "%w", err)
	}
	if got := ServiceKey(e.Namespace, e.Name); got != key {
		return nil, refuse(ServiceExports, key, ReasonKeyMismatch, "the value is that of %q", got)
	}
	// A time zone can carry a time out of the years that its format can express:
	// what we pass on would not be readable.
	if year := e.ExportCreationTimestamp.UTC().Year(); year < 1 || year > 9999 {
		return nil, refuse(ServiceExports, key, ReasonMalformed, "creation in the year %d", year)
	}
	return e, nil
}
