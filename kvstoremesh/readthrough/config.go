// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package readthrough answers single look-ups of what remote clusters don't push: an
// agent that is missing an endpoint or an identity asks it by a key of
// wire.Lookup.ReadThroughKey, and it asks the remote cluster's own etcd, over the
// connection and with the rights that KVStoreMesh has there.
//
//	agent ─Range─▶ server: allowed? a look-up? ─▶ cache ─▶ one flight a key ─▶ slots, breaker ─▶ remote etcd
//
// It speaks etcd's protocol, so that any client of etcd can ask, and answers no more of
// it than the Range of one key, a Txn of such, and what health checks ask.
//
//	config.go   flags
//	cell.go     the wiring
//	listen.go   where it is served
//	tls.go      its certificates
//	names.go    which clients may ask
//	server.go   etcd's protocol: what is answered, and what is refused
//	source.go   how a remote cluster is asked, and what is passed on of its answer
//	flights.go  what is asked for already isn't asked for again
//	link.go     what belongs to one connection to a remote cluster
//	cache.go    answers, for a moment
//	failure.go  why there is no answer
//	metrics.go  what happened
package readthrough

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Config is the configuration of the read-through.
type Config struct {
	// ListenAddress is host:port or unix:///path; empty is off.
	ListenAddress string        `mapstructure:"ondemand-listen-address"`
	CertFile      string        `mapstructure:"ondemand-cert-file"`
	KeyFile       string        `mapstructure:"ondemand-key-file"`
	TrustedCAFile string        `mapstructure:"ondemand-trusted-ca-file"`
	AllowedNames  []string      `mapstructure:"ondemand-allowed-names"`
	CacheTTL      time.Duration `mapstructure:"ondemand-cache-ttl"`
}

// FlagListenAddress is where a KVStoreMesh serves its read-through.
const FlagListenAddress = "ondemand-listen-address"

// anyName is the name that allows every certificate of the CA.
const anyName = "*"

// DefaultConfig is off. A second is less than it takes a pod to be there and be sent
// something, and spares a source what several agents ask for at a time.
var DefaultConfig = Config{CacheTTL: time.Second}

// Flags registers the flags.
func (def Config) Flags(flags *pflag.FlagSet) {
	flags.String(FlagListenAddress, def.ListenAddress,
		"Where agents may look up what remote clusters don't push: host:port, or unix:///path; off if empty")
	flags.String("ondemand-cert-file", def.CertFile, "Certificate of that address; read again for each connection")
	flags.String("ondemand-key-file", def.KeyFile, "Key of the certificate")
	flags.String("ondemand-trusted-ca-file", def.TrustedCAFile, "CA of which clients must have a certificate")
	flags.StringSlice("ondemand-allowed-names", def.AllowedNames,
		`Common names, or DNS names, of the certificates of clients that may ask; "*" is every certificate of the CA`)
	flags.Duration("ondemand-cache-ttl", def.CacheTTL, "How long an answer may be given again, and an absence for 250ms of it at most; 0 asks the remote cluster each time")
}

// enabled says whether it is served at all.
func (def Config) enabled() bool { return def.ListenAddress != "" }

// secure says whether clients show certificates.
func (def Config) secure() bool { return def.CertFile != "" }

const unixScheme = "unix://"

// socket is the path of the Unix socket, if the address is one.
func (def Config) socket() (path string, ok bool) {
	return strings.CutPrefix(def.ListenAddress, unixScheme)
}

// without is for what isn't enabled: it refuses what says how to serve.
func (def Config) without() error {
	for _, given := range []struct {
		flag string
		set  bool
	}{
		{"ondemand-cert-file", def.CertFile != ""}, {"ondemand-key-file", def.KeyFile != ""},
		{"ondemand-trusted-ca-file", def.TrustedCAFile != ""}, {"ondemand-allowed-names", len(def.AllowedNames) > 0},
		{"ondemand-cache-ttl", def.CacheTTL != DefaultConfig.CacheTTL},
	} {
		if given.set {
			return fmt.Errorf("--%s has no effect without --%s", given.flag, FlagListenAddress)
		}
	}
	return nil
}

// validate refuses what would be served to others than was meant.
func (def Config) validate() error {
	if def.CacheTTL < 0 {
		return fmt.Errorf("--ondemand-cache-ttl=%v: must not be negative", def.CacheTTL)
	}
	missing, given := "", false
	for _, file := range []struct{ flag, path string }{
		{"ondemand-cert-file", def.CertFile}, {"ondemand-key-file", def.KeyFile}, {"ondemand-trusted-ca-file", def.TrustedCAFile},
	} {
		if given = given || file.path != ""; file.path == "" {
			missing = file.flag
		}
	}
	if given && missing != "" {
		return fmt.Errorf("--%s is missing: certificate, key and the clients' CA go together", missing)
	}
	switch {
	case slices.Contains(def.AllowedNames, ""):
		return errors.New("--ondemand-allowed-names has an empty name")
	case given && len(def.AllowedNames) == 0:
		return fmt.Errorf("--ondemand-allowed-names is missing: it says which certificates may ask; %q is all that the CA has signed", anyName)
	case !given && len(def.AllowedNames) > 0:
		return errors.New("--ondemand-allowed-names has no effect without --ondemand-cert-file: nobody shows a certificate")
	}
	return def.validateAddress()
}

func (def Config) validateAddress() error {
	if path, ok := def.socket(); ok {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("--%s=%q: a socket needs an absolute path", FlagListenAddress, def.ListenAddress)
		}
		return nil
	}
	if strings.HasPrefix(def.ListenAddress, "unix:") {
		return fmt.Errorf("--%s=%q: a socket is unix:///path", FlagListenAddress, def.ListenAddress)
	}
	if _, _, err := net.SplitHostPort(def.ListenAddress); err != nil {
		return fmt.Errorf("--%s=%q: neither host:port nor unix:///path: %w", FlagListenAddress, def.ListenAddress, err)
	}
	return nil
}
