// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"regexp"
	"time"
)

// outage is a time in which an etcd can't be read, or written to, for who logs it: an etcd that is
// away for a day is some thousands of attempts, and no news but for the first one and
// for those that fail for another reason. It takes no locks.
type outage struct {
	since time.Time // zero while there is none
	// told are the reasons that were logged. Attempts may fail for two by turns.
	told map[string]struct{}
}

// maxReasons bounds told: a reason beyond may have in it what changes with each attempt.
const maxReasons = 10

// failed takes note of an attempt that has failed, and says whether that is news.
func (o *outage) failed(now time.Time, err error) (news bool) {
	if o.since.IsZero() {
		o.since, o.told = now, make(map[string]struct{})
	}
	reason := ownPort.ReplaceAllString(err.Error(), "")
	if _, told := o.told[reason]; told || len(o.told) >= maxReasons {
		return false
	}
	o.told[reason] = struct{}{}
	return true
}

// over ends it, and says since when there was one, if there was.
func (o *outage) over() (since time.Time, was bool) {
	since, was = o.since, !o.since.IsZero()
	*o = outage{}
	return since, was
}

// ownPort is what differs between attempts that fail alike: by which port they went out.
var ownPort = regexp.MustCompile(`(read|write) tcp \S+->`)
