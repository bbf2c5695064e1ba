// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/hive/script"
	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// number is what stands in a template for the number of the object.
const number = "$N"

// churn changes objects of one cluster at random, while the script goes on.
type churn struct {
	// add and remove are the commands k8s/add, which also updates, and k8s/delete.
	add, remove script.Cmd
	// state is its own: that of the script is used by the script.
	state *script.State
	// files are all objects, a file each; several may be the same object.
	files   []string
	random  *rand.Rand
	every   time.Duration
	cancel  context.CancelFunc
	stopped chan struct{}

	// These are for the churn's goroutine, and after stopped for others.
	changes int
	err     error
	// enough is closed after so many changes.
	atLeast int
	enough  chan struct{}
}

func churnCommand(c *cluster, cmds map[string]script.Cmd) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "change objects at random while the script goes on",
			Args:    "TEMPLATE...",
			Flags: func(flags *pflag.FlagSet) {
				flags.Int("count", 10, "how many objects there are of each template")
				flags.Duration("every", 2*time.Millisecond, "the pause between two changes")
				flags.Uint64("seed", 1, "another one makes other changes")
				flags.Int("at-least", 500, "how many changes k8s/churn-stop waits for")
			},
			Detail: []string{
				number + " in a template is the object's number, from 0 on. A change draws a template and a number, and adds the object, makes it what the template says, or deletes it.",
				"Templates of the same name are versions of one object.",
			},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if c.churn != nil {
				return nil, fmt.Errorf("objects of %s change already", c.name)
			}
			if len(args) == 0 {
				return nil, fmt.Errorf("%w: which templates", script.ErrUsage)
			}
			count, err := s.Flags.GetInt("count")
			if err != nil {
				return nil, err
			}
			every, err := s.Flags.GetDuration("every")
			if err != nil {
				return nil, err
			}
			seed, err := s.Flags.GetUint64("seed")
			if err != nil {
				return nil, err
			}
			atLeast, err := s.Flags.GetInt("at-least")
			if err != nil {
				return nil, err
			}
			if count <= 0 || every <= 0 {
				return nil, fmt.Errorf("%w: --count and --every must be more than 0", script.ErrUsage)
			}
			files, err := expand(s, filepath.Join(c.dir, "churn"), args, count)
			if err != nil {
				return nil, fmt.Errorf("preparing what is to change: %w", err)
			}
			ctx, cancel := context.WithCancel(s.Context())
			state, err := script.NewState(ctx, workDir(s), nil)
			if err != nil {
				cancel()
				return nil, fmt.Errorf("preparing what is to change: %w", err)
			}
			state.Flags = pflag.NewFlagSet("churn", pflag.ContinueOnError)
			c.churn = &churn{
				add: cmds["k8s/add"], remove: cmds["k8s/delete"], state: state, files: files,
				random: rand.New(rand.NewPCG(seed, 0)), every: every,
				cancel: cancel, stopped: make(chan struct{}), atLeast: max(1, atLeast), enough: make(chan struct{}),
			}
			go c.churn.run(ctx)
			return nil, nil
		},
	)
}

func churnStopCommand(c *cluster) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "end what k8s/churn began, and delete all of its objects",
			Detail:  []string{"If there weren't as many changes yet as --at-least said, it waits for them."},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 0 {
				return nil, fmt.Errorf("%w: no arguments", script.ErrUsage)
			}
			churn := c.churn
			if churn == nil {
				return nil, fmt.Errorf("nothing of %s changes", c.name)
			}
			select {
			case <-churn.enough:
			case <-churn.stopped: // by an error
			case <-s.Context().Done():
			}
			c.churn = nil
			err := churn.stop()
			if s.Logf("%d changes\n", churn.changes); err != nil {
				return nil, err
			}
			return nil, churn.deleteAll()
		},
	)
}

// expand makes the objects of the templates, and gives their files.
func expand(s *script.State, dir string, templates []string, count int) (files []string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for i, template := range templates {
		text, err := os.ReadFile(s.Path(template))
		if err != nil {
			return nil, err
		}
		if !strings.Contains(string(text), number) {
			return nil, fmt.Errorf("%s: there is no %s in it", template, number)
		}
		for n := range count {
			file := filepath.Join(dir, fmt.Sprintf("%d-%d.yaml", i, n))
			object := strings.ReplaceAll(string(text), number, strconv.Itoa(n))
			if err := os.WriteFile(file, []byte(object), 0o644); err != nil {
				return nil, err
			}
			files = append(files, file)
		}
	}
	return files, nil
}

// run makes changes until ctx ends.
func (c *churn) run(ctx context.Context) {
	defer close(c.stopped)
	ticker := time.NewTicker(c.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if c.err = c.change(); c.err != nil {
			return
		}
		if c.changes++; c.changes == c.atLeast {
			close(c.enough)
		}
	}
}

func (c *churn) change() error {
	file := c.files[c.random.IntN(len(c.files))]
	if c.random.IntN(3) == 0 {
		return c.delete(file)
	}
	if _, err := c.add.Run(c.state, file); err != nil {
		return fmt.Errorf("changing %s: %w", file, err)
	}
	return nil
}

func (c *churn) delete(file string) error {
	if _, err := c.remove.Run(c.state, file); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting %s: %w", file, err)
	}
	return nil
}

// stop ends the changes, and says what went wrong with one.
func (c *churn) stop() error {
	c.cancel()
	<-c.stopped
	return c.err
}

func (c *churn) deleteAll() error {
	for _, file := range c.files {
		if err := c.delete(file); err != nil {
			return err
		}
	}
	return nil
}
