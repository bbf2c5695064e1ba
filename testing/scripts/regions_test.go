// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMissingRegionIsSaidOnce: a KVStoreMesh without a region says so at its start, and
// one with a region says which source has none; neither says it again for another
// connection.
func TestMissingRegionIsSaidOnce(t *testing.T) {
	const ours, theirs = "This cluster has no region", "Remote cluster names no region"
	for flag, want := range map[string]map[string]int{
		"":                     {ours: 1, theirs: 0},
		" --cluster-region=us": {ours: 0, theirs: 1},
	} {
		file := filepath.Join(t.TempDir(), "script.txtar")
		script := "etcd/start c1 c2\n" +
			"exporter/start c1 --cluster-id=1\n" +
			"kvstoremesh/start c2 --cluster-id=2" + flag + "\n" +
			"mesh/connect c2 c1\n" +
			"* c2/kvstoremesh/db/cmp remote-clusters ready\n\n" +
			"# Again.\nnet/cut c2/kvstoremesh/c1\n\n" +
			"# Wait for it.\n* c2/kvstoremesh/db/cmp remote-clusters away\n\n" +
			"# And back.\nnet/heal c2/kvstoremesh/c1\n\n" +
			"# Wait for it.\n* c2/kvstoremesh/db/cmp remote-clusters back\n\n" +
			"-- ready --\nName  Connected  Ready\nc1    true       true\n" +
			"-- away --\nName  Connected\nc1    false\n" +
			"-- back --\nName  Connected\nc1    true\n"
		require.NoError(t, os.WriteFile(file, []byte(script), 0o644))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		var out, log bytes.Buffer
		err := RunFile(ctx, file, &out, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		cancel()
		require.NoError(t, err, out.String())
		for text, times := range want {
			require.Equal(t, times, strings.Count(log.String(), text), "%q with %q", text, flag)
		}
	}
}
