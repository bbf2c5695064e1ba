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

// The flag -o, by its long name.
const (
	flagName = "output"
	usage    = "How it is printed: text or json"
)

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
	flags.VarP(f, flagName, "o", usage)
}

// Flag adds the flag to a shell's command that answers by Answer, which looks at it: a
// script may expect a command to fail, but not its flags to be malformed.
func Flag(flags *pflag.FlagSet) { flags.StringP(flagName, "o", string(Text), usage) }

// Answer is the answer of a shell's command with the flag of Flag: a value, on one line
// of JSON, or what text writes of it.
func Answer(flags *pflag.FlagSet, value any, text func(io.Writer) error) (script.WaitFunc, error) {
	var format Format
	name, err := flags.GetString(flagName)
	if err != nil {
		return nil, err
	}
	if err := format.Set(name); err != nil {
		return nil, fmt.Errorf("--%s=%q: %w", flagName, name, err)
	}
	var out bytes.Buffer
	if format == JSON {
		err = json.NewEncoder(&out).Encode(value)
	} else {
		err = text(&out)
	}
	if err != nil {
		return nil, fmt.Errorf("printing the answer: %w", err)
	}
	return func(*script.State) (string, string, error) { return out.String(), "", nil }, nil
}
