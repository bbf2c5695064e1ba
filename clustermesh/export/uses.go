// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

// uses counts the pushed endpoints of each identity, by what is queued for them
// and by what etcd may still have: an identity is pushed before the first of them,
// and goes after the last.
//
// It takes some 50 bytes for each pushed endpoint, its key included (BenchmarkUses),
// in the mode in which few are pushed. Only the exporter's job uses it.
type uses struct {
	// of is the identity that was last queued for each pushed endpoint, by key.
	of    map[string]uint32
	count map[uint32]int
	// departing counts the endpoints that no longer have the identity, and of which
	// that isn't committed; from are the identities that each of those had, by key.
	departing map[uint32]int
	from      map[string]map[uint32]struct{}
	// await has departed called for an endpoint's key once what is queued for it by now
	// is committed, and is false if that is so already.
	await func(key string) bool
	// left are the departures of the present batch.
	left []departure
	// changed are the identities that became unused, or free to go.
	changed map[uint32]struct{}
}

type departure struct {
	key      string
	identity uint32
}

func newUses(await func(key string) bool) *uses {
	return &uses{
		of: map[string]uint32{}, count: map[uint32]int{}, departing: map[uint32]int{}, from: map[string]map[uint32]struct{}{},
		await: await, changed: map[uint32]struct{}{},
	}
}

func (u *uses) used(identity uint32) bool    { return u.count[identity] > 0 }
func (u *uses) departs(identity uint32) bool { return u.departing[identity] > 0 }

// arrive takes note that an endpoint is pushed with an identity, and says whether
// it is the first one of it. Identity 0 is none.
func (u *uses) arrive(key string, identity uint32) (first bool) {
	if u.of[key] == identity {
		return false
	}
	u.leave(key)
	if identity == 0 {
		return false
	}
	u.of[key] = identity
	u.count[identity]++
	return u.count[identity] == 1
}

// leave takes note that an endpoint is deleted where it was pushed.
func (u *uses) leave(key string) {
	identity, ok := u.of[key]
	if !ok {
		return
	}
	delete(u.of, key)
	u.left = append(u.left, departure{key, identity})
	if u.count[identity]--; u.count[identity] == 0 {
		delete(u.count, identity)
		u.changed[identity] = struct{}{}
	}
}

// stay takes note that an endpoint which was about to leave doesn't.
func (u *uses) stay(key string) {
	if identity, ok := u.of[key]; ok {
		u.changed[identity] = struct{}{}
	}
}

// applied is called when the operations are queued by which the endpoints leave. One
// waits for each key, however often that one comes and goes meanwhile.
func (u *uses) applied() {
	for _, d := range u.left {
		from, waits := u.from[d.key]
		if !waits {
			if !u.await(d.key) {
				u.changed[d.identity] = struct{}{}
				continue
			}
			from = map[uint32]struct{}{}
			u.from[d.key] = from
		}
		if _, counted := from[d.identity]; !counted {
			from[d.identity] = struct{}{}
			u.departing[d.identity]++
		}
	}
	clear(u.left)
	u.left = u.left[:0]
}

// departed takes note that what was queued for an endpoint is committed. Since then it
// may have come and gone again.
func (u *uses) departed(key string) {
	if u.await(key) {
		return
	}
	for identity := range u.from[key] {
		if u.departing[identity]--; u.departing[identity] == 0 {
			delete(u.departing, identity)
			u.changed[identity] = struct{}{}
		}
	}
	delete(u.from, key)
}

// take gives the identities that are to be decided again.
func (u *uses) take() map[uint32]struct{} {
	if len(u.changed) == 0 {
		return nil
	}
	taken := u.changed
	u.changed = map[uint32]struct{}{}
	return taken
}
