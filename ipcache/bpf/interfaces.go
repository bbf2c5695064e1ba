// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// retryInterval is how long an interface waits that couldn't be attached to, and how
// often it is looked whether the ipcache map is still the one that is pinned.
const retryInterval = 5 * time.Second

// relistDelay gathers messages that can't be read: one list makes up for all of them.
const relistDelay = 100 * time.Millisecond

// Interfaces keeps programs on the interfaces that are selected, as these come, go and
// are renamed. All its work is done by Run.
type Interfaces struct {
	log     *slog.Logger
	kernel  *Kernel
	pods    Patterns
	devices Patterns
	retry   time.Duration
	// subscribe is netlink's; a test loses messages of it.
	subscribe func(chan<- netlink.LinkUpdate, <-chan struct{}, netlink.LinkSubscribeOptions) error

	// failed are interfaces that ought to have a program and don't, by index.
	failed map[int]error
	// reported is what health has.
	reported string
	// general is what is wrong beyond single interfaces; nil if nothing is.
	general error
}

// NewInterfaces has the kernel look at the pods' interfaces, whose patterns are given
// first, and at the node's own: uplinks, and tunnel devices, which are known by their
// type. A name that both select is a pod's.
func NewInterfaces(log *slog.Logger, kernel *Kernel, pods, devices Patterns) *Interfaces {
	return &Interfaces{
		log: log, kernel: kernel, pods: pods, devices: devices, retry: retryInterval, failed: map[int]error{},
		subscribe: netlink.LinkSubscribeWithOptions,
	}
}

// Run follows the interfaces until ctx ends; it is a job. What fails is in health, is
// tried again, and doesn't keep the rest from working. Programs stay where they are when
// it returns.
func (i *Interfaces) Run(ctx context.Context, health cell.Health) error {
	for ctx.Err() == nil {
		err := i.follow(ctx, health)
		if ctx.Err() != nil {
			break
		}
		// The kernel had more news than fits, or there is no netlink.
		i.general = err
		i.report(health)
		i.log.Warn("Lost track of the network interfaces, listing them anew", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

// follow lists the interfaces and then follows the changes, until the subscription ends.
func (i *Interfaces) follow(ctx context.Context, health cell.Health) error {
	updates, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	// What went wrong last: with one message, after which others come, or with the
	// subscription, which then ends.
	var failure atomic.Pointer[error]
	failed := make(chan struct{}, 1)
	err := i.kernel.cfg.inNetNS(func() error {
		return i.subscribe(updates, done, netlink.LinkSubscribeOptions{
			ErrorCallback: func(err error) {
				failure.Store(&err)
				select {
				case failed <- struct{}{}:
				default:
				}
			},
		})
	})
	if err != nil {
		close(done)
		return fmt.Errorf("subscribing to changes of interfaces: %w", err)
	}
	defer func() {
		close(done)
		for range updates { // until its goroutine has ended
		}
	}()
	// After the subscription, so that nothing falls in between.
	if err := i.list(); err != nil {
		return err
	}
	i.general = nil
	i.report(health)

	tick := time.NewTicker(i.retry)
	defer tick.Stop()
	var relist <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := i.again(); err != nil {
				return err
			}
		case <-failed:
			if relist == nil {
				relist = time.After(relistDelay)
			}
		case <-relist:
			relist = nil
			i.log.Warn("News of a network interface can't be read, listing them anew", "error", *failure.Load())
			if err := i.list(); err != nil {
				return err
			}
		case update, ok := <-updates:
			if !ok {
				if err := failure.Load(); err != nil {
					return fmt.Errorf("following changes of interfaces: %w", *err)
				}
				return errors.New("following changes of interfaces: they have ended")
			}
			i.changed(update)
		}
		i.report(health)
	}
}

// list brings everything to what is wanted of the interfaces that there are.
func (i *Interfaces) list() error {
	var devices []netlink.Link
	err := i.kernel.cfg.inNetNS(func() (err error) {
		devices, err = netlink.LinkList()
		return err
	})
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	clear(i.failed)
	gone := i.kernel.kinds()
	for _, device := range devices {
		i.want(device)
		delete(gone, device.Attrs().Index)
	}
	for index := range gone {
		i.unwant(index)
	}
	return nil
}

// again tries what failed once more.
func (i *Interfaces) again() error {
	if len(i.failed) > 0 {
		if err := i.list(); err != nil {
			return err
		}
	}
	replaced, err := i.kernel.refresh()
	if replaced {
		i.log.Info("The ipcache map was replaced: the programs read the new one")
	}
	i.general = err
	return nil
}

// changed handles one message of the kernel's.
func (i *Interfaces) changed(update netlink.LinkUpdate) {
	if update.Family == unix.AF_BRIDGE {
		// It is about a port of a bridge; a deletion is that of the port.
		return
	}
	if update.Header.Type == unix.RTM_DELLINK {
		i.unwant(update.Link.Attrs().Index)
		return
	}
	i.want(update.Link)
}

// want gives an interface the program that it is to have, or none.
func (i *Interfaces) want(device netlink.Link) {
	attrs := device.Attrs()
	kind, ok := i.kindOf(device)
	if !ok {
		i.unwant(attrs.Index)
		return
	}
	err := i.kernel.attach(attrs.Index, kind)
	var notFound netlink.LinkNotFoundError
	switch {
	case err == nil:
		delete(i.failed, attrs.Index)
	case errors.As(err, &notFound) || errors.Is(err, unix.ENODEV):
		// It went as quickly as it came.
		delete(i.failed, attrs.Index)
	default:
		i.failed[attrs.Index] = err
	}
}

// unwant takes the program off an interface, if it has one.
func (i *Interfaces) unwant(index int) {
	delete(i.failed, index)
	if err := i.kernel.detach(index); err != nil {
		i.failed[index] = err
	}
}

// kindOf is what an interface is to be looked at as; false if it isn't selected.
func (i *Interfaces) kindOf(device netlink.Link) (Kind, bool) {
	if device.Attrs().Flags&net.FlagLoopback != 0 {
		// No pod is behind it, though "+" selects it, and all that the host says to itself
		// would pass the programs.
		return 0, false
	}
	switch name := device.Attrs().Name; {
	case i.pods.match(name):
		return KindPod, true
	case !i.devices.match(name):
		return 0, false
	}
	switch tunnel := device.(type) {
	case *netlink.Vxlan:
		if tunnel.FlowBased {
			return KindTunnel, true
		}
	case *netlink.Geneve:
		if tunnel.FlowBased {
			return KindTunnel, true
		}
	}
	return KindUplink, true
}

// report says what there is and what there isn't.
func (i *Interfaces) report(health cell.Health) {
	count := map[Kind]int{}
	for _, kind := range i.kernel.kinds() {
		count[kind]++
	}
	status := fmt.Sprintf("On %d pods' interfaces, %d uplinks, %d tunnels", count[KindPod], count[KindUplink], count[KindTunnel])
	errs := []error{i.general}
	for _, index := range slices.Sorted(maps.Keys(i.failed)) {
		errs = append(errs, i.failed[index])
	}
	err := errors.Join(errs...)
	reported := fmt.Sprint(status, err)
	if reported == i.reported {
		return
	}
	i.reported = reported
	if err != nil {
		health.Degraded(status, errors.New(strings.ReplaceAll(err.Error(), "\n", "; ")))
		return
	}
	health.OK(status)
}
