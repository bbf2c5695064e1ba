// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// TestAnswer has each format, and the one of neither.
func TestAnswer(t *testing.T) {
	answer := func(args ...string) (string, error) {
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		Flag(flags)
		require.NoError(t, flags.Parse(args))
		wait, err := Answer(flags, []int{1, 2}, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, "one and two")
			return err
		})
		if err != nil {
			return "", err
		}
		out, errOut, err := wait(nil)
		require.NoError(t, err)
		require.Empty(t, errOut)
		return out, nil
	}
	for _, args := range [][]string{nil, {"-o", "text"}} {
		out, err := answer(args...)
		require.NoError(t, err)
		require.Equal(t, "one and two\n", out)
	}
	out, err := answer("--output=json")
	require.NoError(t, err)
	require.Equal(t, "[1,2]\n", out)
	_, err = answer("-o", "yaml")
	require.EqualError(t, err, `--output="yaml": must be text or json`)

	var format Format
	line := pflag.NewFlagSet("", pflag.ContinueOnError)
	format.Flag(line)
	require.Equal(t, Text, format)
	require.ErrorContains(t, line.Parse([]string{"-o", "yaml"}), "must be text or json")
	require.NoError(t, line.Parse([]string{"-o", "json"}))
	require.Equal(t, JSON, format)

	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	Flag(flags)
	broken := errors.New("broken")
	_, err = Answer(flags, nil, func(io.Writer) error { return broken })
	require.ErrorIs(t, err, broken)
}
