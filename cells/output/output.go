// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package output is how commands give their answers, those of a shell as well as those
// of a command line: as text, with tables, for people, or as JSON for programs.
//
//	output.go  the flag -o, and what it chooses
//	table.go   tables
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/cilium/hive/script"
	"github.com/spf13/pflag"
)

// flagName is the long name of the flag -o.
const flagName = "output"

// Format is how a command answers, as the value of its flag.
type Format string

// The formats.
const (
	Text Format = "text"
	JSON Format = "json"
)

// String implements pflag.Value.
func (f *Format) String() string { return string(*f) }

// Set implements pflag.Value.
func (f *Format) Set(text string) error {
	if format := Format(text); format != Text && format != JSON {
		return fmt.Errorf("must be %s or %s", Text, JSON)
	}
	*f = Format(text)
	return nil
}

// Type implements pflag.Value.
func (*Format) Type() string { return "string" }

// Flag adds the flag that sets it; without the flag it is Text.
func (f *Format) Flag(flags *pflag.FlagSet) {
	*f = Text
	flags.VarP(f, flagName, "o", "How it is printed: text or json")
}

// Flag adds the flag to a shell's command that answers by Answer.
func Flag(flags *pflag.FlagSet) { new(Format).Flag(flags) }

// Answer is the answer of a shell's command with the flag of Flag: a value, on one line
// of JSON, or what text writes of it.
func Answer(flags *pflag.FlagSet, value any, text func(io.Writer) error) (script.WaitFunc, error) {
	var out bytes.Buffer
	var err error
	if Format(flags.Lookup(flagName).Value.String()) == JSON {
		err = json.NewEncoder(&out).Encode(value)
	} else {
		err = text(&out)
	}
	if err != nil {
		return nil, fmt.Errorf("printing the answer: %w", err)
	}
	return func(*script.State) (string, string, error) { return out.String(), "", nil }, nil
}
