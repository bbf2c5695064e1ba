// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// Patterns select interfaces by name, as Cilium's flags do: "eth0" is that interface,
// "lxc+" every one whose name begins with "lxc".
type Patterns []string

// Validate names the patterns that can't match anything.
func (p Patterns) Validate() error {
	var errs []error
	for _, pattern := range p {
		name := strings.TrimSuffix(pattern, "+")
		switch {
		case pattern == "":
			errs = append(errs, errors.New("an empty name of an interface"))
		case len(name) >= unix.IFNAMSIZ:
			errs = append(errs, fmt.Errorf("%q: names of interfaces have at most %d characters", pattern, unix.IFNAMSIZ-1))
		case strings.ContainsAny(name, "+*?[]"):
			errs = append(errs, fmt.Errorf("%q: a pattern is a name, or the beginning of one and a +", pattern))
		case pattern == "." || pattern == ".." || strings.ContainsFunc(name, isInNoName):
			errs = append(errs, fmt.Errorf("%q: no interface has such a name", pattern))
		}
	}
	return errors.Join(errs...)
}

// isInNoName is true for what the kernel lets no interface's name have, and for what none
// has that is meant to be read.
func isInNoName(r rune) bool { return r == '/' || r == ':' || r == ' ' || !unicode.IsPrint(r) }

// match says whether one of the patterns selects the interface.
func (p Patterns) match(name string) bool {
	for _, pattern := range p {
		if prefix, ok := strings.CutSuffix(pattern, "+"); ok && strings.HasPrefix(name, prefix) || name == pattern {
			return true
		}
	}
	return false
}
