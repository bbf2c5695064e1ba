// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// attachment is our program on one interface. Its link is pinned, by the kind and the
// index of the interface.
type attachment struct {
	link link.Link
	kind Kind
	raw  bool // packets have no Ethernet header
	path string
}

// kinds are those of each interface that has a program of ours, by index.
func (k *Kernel) kinds() map[int]Kind {
	k.mu.Lock()
	defer k.mu.Unlock()
	attached := make(map[int]Kind, len(k.links))
	for ifindex, a := range k.links {
		attached[ifindex] = a.kind
	}
	return attached
}

// attach puts a program in front of all others on the ingress of an interface; they all
// see every packet still. It does nothing if that is so already, and replaces the
// program in place if the interface was of another kind.
//
// For an interface that isn't there the error is netlink's LinkNotFoundError or ENODEV.
func (k *Kernel) attach(ifindex int, kind Kind) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cfg.inNetNS(func() error { return k.attachLocked(ifindex, kind) })
}

func (k *Kernel) attachLocked(ifindex int, kind Kind) error {
	if k.programs == nil {
		return ErrClosed
	}
	a, ok := k.links[ifindex]
	if ok {
		alive, err := a.alive(ifindex)
		if err != nil {
			return err
		}
		if !alive {
			// The index was another interface's.
			delete(k.links, ifindex)
			if err := a.remove(); err != nil {
				return err
			}
			ok = false
		} else if a.kind == kind {
			return nil
		}
	}
	device, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("looking for interface %d: %w", ifindex, err)
	}
	raw, err := isRaw(device)
	if err != nil {
		return err
	}
	program := k.programs.of(kind, raw)
	if program == nil {
		return fmt.Errorf("interface %s is of no known kind (%d)", device.Attrs().Name, kind)
	}
	path := filepath.Join(k.linksDir(), pinName(kind, ifindex))
	if ok {
		return a.become(program, kind, path)
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex,
		Program:   program,
		Attach:    ebpf.AttachTCXIngress,
		Anchor:    link.Head(),
	})
	if err != nil {
		return fmt.Errorf("attaching to interface %s: %w", device.Attrs().Name, unpermitted(err))
	}
	if err := l.Pin(path); err != nil {
		return errors.Join(fmt.Errorf("pinning the link to interface %s at %s: %w", device.Attrs().Name, path, err), l.Close())
	}
	k.links[ifindex] = &attachment{link: l, kind: kind, raw: raw, path: path}
	return nil
}

// detach takes our program off an interface, if there is one.
func (k *Kernel) detach(ifindex int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, ok := k.links[ifindex]
	if !ok {
		return nil
	}
	delete(k.links, ifindex)
	return a.remove()
}

// alive says whether the interface that it was attached to is still there.
func (a *attachment) alive(ifindex int) (bool, error) {
	info, err := a.link.Info()
	if err != nil {
		return false, fmt.Errorf("asking about the link at %s: %w", a.path, err)
	}
	tcx := info.TCX()
	return tcx != nil && int(tcx.Ifindex) == ifindex, nil
}

// become replaces the program in place by one of another kind.
func (a *attachment) become(program *ebpf.Program, kind Kind, path string) error {
	if err := a.link.Update(program); err != nil {
		return fmt.Errorf("replacing the program of the link at %s: %w", a.path, err)
	}
	if err := a.link.Pin(path); err != nil {
		return fmt.Errorf("moving the pin of a link from %s to %s: %w", a.path, path, err)
	}
	a.kind, a.path = kind, path
	return nil
}

// remove unpins and closes the link, which detaches the program.
func (a *attachment) remove() error {
	if err := errors.Join(a.link.Unpin(), a.link.Close()); err != nil {
		return fmt.Errorf("removing the link at %s: %w", a.path, err)
	}
	return nil
}

// restoreLinks takes over the links of an earlier process and has them run our programs
// from now on. What can't be taken over is detached, and attached anew when asked for.
func (k *Kernel) restoreLinks() error {
	if err := os.MkdirAll(k.linksDir(), 0o700); err != nil {
		return fmt.Errorf("making the directory of links: %w", err)
	}
	entries, err := os.ReadDir(k.linksDir())
	if err != nil {
		return fmt.Errorf("looking for links of an earlier process: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(k.linksDir(), entry.Name())
		kind, ifindex, ok := parsePinName(entry.Name())
		if !ok {
			return fmt.Errorf("the directory of links has %s: %w", path, ErrForeignPin)
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("opening the link at %s: %w", path, err)
		}
		a := &attachment{link: l, kind: kind, path: path}
		if err := k.takeOver(a, ifindex); err != nil {
			k.log.Info("Detaching from an interface", "ifindex", ifindex, "reason", err)
			if err := a.remove(); err != nil {
				return err
			}
			continue
		}
		k.links[ifindex] = a
	}
	return nil
}

func (k *Kernel) takeOver(a *attachment, ifindex int) error {
	alive, err := a.alive(ifindex)
	if err != nil {
		return err
	}
	if !alive {
		return errors.New("it is gone")
	}
	device, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("looking for it: %w", err)
	}
	if a.raw, err = isRaw(device); err != nil {
		return err
	}
	if err := a.link.Update(k.programs.of(a.kind, a.raw)); err != nil {
		return fmt.Errorf("replacing its program: %w", err)
	}
	return nil
}

// isRaw says whether packets on the device have another header before that of IP than
// Ethernet's, or none.
func isRaw(device netlink.Link) (bool, error) {
	if device.Type() == "netkit" {
		return false, fmt.Errorf("interface %s is a netkit device: what its pod sends is redirected before TCX", device.Attrs().Name)
	}
	hardware := device.Attrs().EncapType
	return hardware != "ether" && hardware != "loopback", nil
}

// pinName can't have the interface's name: it may have a dot, which the BPF file system
// doesn't take, and it may change.
func pinName(kind Kind, ifindex int) string { return kind.String() + "_" + strconv.Itoa(ifindex) }

func parsePinName(name string) (Kind, int, bool) {
	prefix, index, _ := strings.Cut(name, "_")
	ifindex, err := strconv.Atoi(index)
	if err != nil || ifindex <= 0 {
		return 0, 0, false
	}
	for _, kind := range []Kind{KindPod, KindUplink, KindTunnel} {
		if prefix == kind.String() {
			return kind, ifindex, true
		}
	}
	return 0, 0, false
}
