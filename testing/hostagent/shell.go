// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package hostagent

import (
	"bytes"
	"path/filepath"

	"github.com/cilium/hive/shell"
)

// Shell runs one command in the agent's shell, as `cilium-dbg shell` does, and gives what
// it prints.
func (a *Agent) Shell(command string) (string, error) {
	var out bytes.Buffer
	err := shell.ShellExchange(shell.Config{ShellSockPath: a.shellSocket()}, &out, "%s", command)
	return out.String(), err
}

func (a *Agent) shellSocket() string { return filepath.Join(a.dir, "shell.sock") }
