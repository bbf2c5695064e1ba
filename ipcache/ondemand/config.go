// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

const (
	flagEnable        = "enable-ondemand-resolution"
	flagInterfaces    = "ondemand-interfaces"
	flagDevices       = "ondemand-devices"
	flagPodCIDRs      = "ondemand-pod-cidrs"
	flagIPCacheMap    = "ondemand-ipcache-map"
	flagTTL           = "ondemand-ttl"
	flagNegativeTTL   = "ondemand-negative-ttl"
	flagLookupTimeout = "ondemand-lookup-timeout"
	flagConcurrency   = "ondemand-concurrency"
	flagMaxEntries    = "ondemand-max-entries"
	flagInterval      = "ondemand-interval"
	flagRate          = "ondemand-rate"
	flagLookupRate    = "ondemand-lookup-rate"
	flagEtcdConfig    = "ondemand-etcd-config"
)

// Config are the flags of on-demand resolution.
type Config struct {
	// Enable turns it on. Where it is off, what an earlier process has left in the
	// kernel is removed.
	Enable bool `mapstructure:"enable-ondemand-resolution"`
	// Interfaces are the pods' ends on the host, and Devices the uplinks and tunnels:
	// names, or patterns that end in "+".
	Interfaces []string `mapstructure:"ondemand-interfaces"`
	Devices    []string `mapstructure:"ondemand-devices"`
	// PodCIDRs are "cluster=CIDR", for clusters whose nodes don't say theirs.
	PodCIDRs []string `mapstructure:"ondemand-pod-cidrs"`
	// IPCacheMap is the pinned map that the programs read; empty is upstream's where
	// that is, else our own.
	IPCacheMap string `mapstructure:"ondemand-ipcache-map"`
	// TTL is how long an entry lives without being used, and how old an answer may be
	// that is; NegativeTTL how long an absent address isn't asked for again.
	TTL         time.Duration `mapstructure:"ondemand-ttl"`
	NegativeTTL time.Duration `mapstructure:"ondemand-negative-ttl"`
	// LookupTimeout bounds a lookup over all resolvers.
	LookupTimeout time.Duration `mapstructure:"ondemand-lookup-timeout"`
	// Concurrency is how many lookups of one cluster are under way at a time.
	Concurrency int `mapstructure:"ondemand-concurrency"`
	// MaxEntries bounds what is kept: so many endpoints, so many identities that
	// packets carry, so many absent addresses.
	MaxEntries int `mapstructure:"ondemand-max-entries"`
	// Interval is the least time between two signals for an address.
	Interval time.Duration `mapstructure:"ondemand-interval"`
	// Rate is of signals per second, interface and cluster; LookupRate of lookups per
	// second of the process.
	Rate       uint32 `mapstructure:"ondemand-rate"`
	LookupRate uint32 `mapstructure:"ondemand-lookup-rate"`
	// EtcdConfig is the etcd client configuration of the KVStoreMesh's read-through.
	EtcdConfig string `mapstructure:"ondemand-etcd-config"`
}

// DefaultConfig is off. TCP sends its first packet again after a second: by then an
// absence is forgotten here, which came after the first packet by as long as the lookup
// took, and by the read-through, which may have known of it for a quarter of a second.
var DefaultConfig = Config{
	Interfaces:    []string{"lxc+"},
	Devices:       []string{"cilium_vxlan", "cilium_geneve"},
	TTL:           time.Minute,
	NegativeTTL:   500 * time.Millisecond,
	LookupTimeout: 2 * time.Second,
	Concurrency:   128,
	MaxEntries:    65536,
	Interval:      200 * time.Millisecond,
	Rate:          1000,
	LookupRate:    5000,
}

// Flags implements cell.Flagger.
func (c Config) Flags(flags *pflag.FlagSet) {
	flags.Bool(flagEnable, c.Enable, "Resolve addresses of remote pods that the ipcache map doesn't know when packets meet them")
	flags.StringSlice(flagInterfaces, c.Interfaces, "Host's ends of pods' interfaces, whose packets' destinations are looked at; a name that ends in \"+\" is a prefix")
	flags.StringSlice(flagDevices, c.Devices, "Uplinks and tunnel devices of the node, whose packets' sources are looked at; a name that ends in \"+\" is a prefix")
	flags.StringSlice(flagPodCIDRs, c.PodCIDRs, "Pod CIDRs of clusters, as cluster=CIDR, where nodes have none of their own; they stand against what remote nodes say")
	flags.String(flagIPCacheMap, c.IPCacheMap, "Path of the pinned ipcache map to look addresses up in (default that of cilium-agent if there is one, else this agent's own)")
	flags.Duration(flagTTL, c.TTL, "How long a resolved entry is kept when it isn't used; one that is used is asked for again as often")
	flags.Duration(flagNegativeTTL, c.NegativeTTL, "How long an address at which there is nothing isn't asked for again")
	flags.Duration(flagLookupTimeout, c.LookupTimeout, "How long a lookup may take")
	flags.Int(flagConcurrency, c.Concurrency, "Lookups of one remote cluster under way at a time")
	flags.Int(flagMaxEntries, c.MaxEntries, "Maximum number of resolved entries, and of absent addresses that are remembered")
	flags.Duration(flagInterval, c.Interval, "Least time between two signals of the kernel for one address")
	flags.Uint32(flagRate, c.Rate, "Signals of the kernel per second, for each pod's interface and remote cluster; a pod has at most 4 times that, a device 16 times")
	flags.Uint32(flagLookupRate, c.LookupRate, "Lookups per second of this agent")
	flags.String(flagEtcdConfig, c.EtcdConfig, "Path to the etcd client configuration of the KVStoreMesh's read-through; empty asks only the etcd that the remote cluster is read from")
}

// flagCIDR is one value of --ondemand-pod-cidrs.
type flagCIDR struct {
	cluster string
	prefix  netip.Prefix
}

// validate names the flag that is at fault.
func (c Config) validate() ([]flagCIDR, error) {
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{flagTTL, c.TTL}, {flagNegativeTTL, c.NegativeTTL}, {flagLookupTimeout, c.LookupTimeout}, {flagInterval, c.Interval}} {
		if f.value <= 0 {
			return nil, fmt.Errorf("--%s=%v: must be more than 0", f.name, f.value)
		}
	}
	if c.TTL < time.Second {
		// The kernel notes the use of an address once a second.
		return nil, fmt.Errorf("--%s=%v: must be 1s at least", flagTTL, c.TTL)
	}
	for _, f := range []struct {
		name       string
		value, max int
	}{
		{flagConcurrency, c.Concurrency, math.MaxInt32}, {flagMaxEntries, c.MaxEntries, bpf.MaxMaxFollowed},
		{flagRate, int(c.Rate), int(bpf.MaxRate)}, {flagLookupRate, int(c.LookupRate), math.MaxInt32},
	} {
		if f.value <= 0 || f.value > f.max {
			return nil, fmt.Errorf("--%s=%d: must be between 1 and %d", f.name, f.value, f.max)
		}
	}
	for _, f := range []struct {
		name  string
		value bpf.Patterns
	}{{flagInterfaces, c.Interfaces}, {flagDevices, c.Devices}} {
		if err := f.value.Validate(); err != nil {
			return nil, fmt.Errorf("--%s: %w", f.name, err)
		}
	}
	if len(c.Interfaces)+len(c.Devices) == 0 {
		return nil, fmt.Errorf("--%s and --%s are both empty: nothing would be looked at", flagInterfaces, flagDevices)
	}
	for _, f := range []struct{ name, value string }{{flagIPCacheMap, c.IPCacheMap}, {flagEtcdConfig, c.EtcdConfig}} {
		if f.value != "" && !filepath.IsAbs(f.value) {
			return nil, fmt.Errorf("--%s=%q: must be an absolute path", f.name, f.value)
		}
	}
	return parseFlagCIDRs(c.PodCIDRs)
}

// parseFlagCIDRs refuses CIDRs that contradict each other: what the operator says is to
// stand.
func parseFlagCIDRs(values []string) (cidrs []flagCIDR, err error) {
	for _, value := range values {
		cluster, text, ok := strings.Cut(value, "=")
		if !ok || cluster == "" {
			return nil, fmt.Errorf("--%s: %q is not cluster=CIDR", flagPodCIDRs, value)
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--%s: %q: %w", flagPodCIDRs, value, err)
		}
		if prefix.Masked() != prefix || prefix.Addr().Is4In6() {
			return nil, fmt.Errorf("--%s: %q: the CIDR has bits after its length, or is an IPv4 one in IPv6's form", flagPodCIDRs, value)
		}
		if reserved, ok := isForNoPods(prefix); ok {
			return nil, fmt.Errorf("--%s: %q overlaps %s, which isn't for pods", flagPodCIDRs, value, reserved)
		}
		for _, other := range cidrs {
			if other.cluster != cluster && other.prefix.Overlaps(prefix) {
				return nil, fmt.Errorf("--%s: %q overlaps %s of cluster %q", flagPodCIDRs, value, other.prefix, other.cluster)
			}
		}
		cidrs = append(cidrs, flagCIDR{cluster, prefix})
	}
	return cidrs, nil
}
