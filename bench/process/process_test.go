// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// childEnv makes the test's program one of the children that it starts.
const childEnv = "WAGGLE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		goleak.VerifyTestMain(m)
	case "fail":
		fmt.Println("no honey")
		os.Exit(3)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		select {}
	default:
		memory := make([]byte, 64<<20)
		for began := time.Now(); time.Since(began) < 50*time.Millisecond; {
			for i := range memory {
				memory[i]++
			}
		}
		fmt.Println("ready")
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
	}
}

func start(t *testing.T, kind string) *Process {
	t.Helper()
	p, err := Start("child", t.TempDir(), []string{os.Args[0]}, []string{childEnv + "=" + kind})
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	return p
}

func waitReady(t *testing.T, p *Process) {
	t.Helper()
	require.Eventually(t, func() bool { return p.LogTail() == "ready\n" }, 30*time.Second, time.Millisecond)
}

func TestUsage(t *testing.T) {
	p := start(t, "busy")
	waitReady(t, p)
	require.NoError(t, p.Err())
	cpu, err := p.CPU()
	require.NoError(t, err)
	require.Greater(t, cpu, 20*time.Millisecond)
	memory, err := p.Memory()
	require.NoError(t, err)
	require.Greater(t, memory.Peak, int64(64<<20))
	require.GreaterOrEqual(t, memory.Peak, memory.Resident)
	require.Positive(t, memory.Anonymous)
	require.Positive(t, memory.File)
	require.NoError(t, p.ResetPeak())
	again, err := p.Memory()
	require.NoError(t, err)
	require.GreaterOrEqual(t, again.Peak, again.Resident)

	require.NoError(t, p.Stop())
	after, err := p.CPU()
	require.NoError(t, err)
	require.Greater(t, after, 20*time.Millisecond)
	_, err = p.Memory()
	require.Error(t, err)
	require.NoError(t, p.Stop(), "a second time")
}

func TestFailure(t *testing.T) {
	p := start(t, "fail")
	<-p.Done()
	require.EqualError(t, p.Err(), "child ended: exit status 3")
	require.Equal(t, "no honey\n", p.LogTail())
}

func TestKill(t *testing.T) {
	p := start(t, "stubborn")
	waitReady(t, p)
	p.Kill()
	require.ErrorContains(t, p.Err(), "killed")
}

func TestPause(t *testing.T) {
	p := start(t, "calm")
	waitReady(t, p)
	require.NoError(t, p.Pause())
	require.NoError(t, p.Resume())
	require.NoError(t, p.Stop(), "it didn't go on")
	require.ErrorContains(t, p.Pause(), "pausing child: ")

	p = start(t, "calm")
	waitReady(t, p)
	require.NoError(t, p.Pause())
	p.Kill()
	require.ErrorContains(t, p.Err(), "killed")
}

func TestStartFails(t *testing.T) {
	_, err := Start("ghost", t.TempDir(), []string{"/nonexistent"}, nil)
	require.ErrorContains(t, err, "starting ghost: ")
}

func TestParseMemory(t *testing.T) {
	m, err := parseMemory([]byte("Name:\tx\nVmHWM:\t   300 kB\nVmRSS:\t 200 kB\nRssAnon:\t 150 kB\nRssFile:\t 50 kB\n"))
	require.NoError(t, err)
	require.Equal(t, Memory{Peak: 300 << 10, Resident: 200 << 10, Anonymous: 150 << 10, File: 50 << 10}, m)
	_, err = parseMemory([]byte("Name:\tx\nVmHWM:\t300 kB\n"))
	require.ErrorContains(t, err, "missing")
	_, err = parseMemory([]byte("VmHWM:\tmuch\n"))
	require.ErrorContains(t, err, "VmHWM")
}
