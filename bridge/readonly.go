// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"

	"github.com/cilium/cilium/pkg/kvstore"
)

// readOnly is what a kvstore has beyond what ClusterMesh uses of it: nothing.
type readOnly struct{}

func (readOnly) LockPath(context.Context, string) (kvstore.KVLocker, error) { return nil, errReadOnly }

func (readOnly) GetIfLocked(context.Context, string, kvstore.KVLocker) ([]byte, error) {
	return nil, errReadOnly
}

func (readOnly) Delete(context.Context, string) error { return errReadOnly }

func (readOnly) DeleteIfLocked(context.Context, string, kvstore.KVLocker) error { return errReadOnly }

func (readOnly) DeletePrefix(context.Context, string) error { return errReadOnly }

func (readOnly) Update(context.Context, string, []byte, bool) error { return errReadOnly }

func (readOnly) UpdateIfLocked(context.Context, string, []byte, bool, kvstore.KVLocker) error {
	return errReadOnly
}

func (readOnly) UpdateIfDifferent(context.Context, string, []byte, bool) (bool, error) {
	return false, errReadOnly
}

func (readOnly) UpdateIfDifferentIfLocked(context.Context, string, []byte, bool, kvstore.KVLocker) (bool, error) {
	return false, errReadOnly
}

func (readOnly) CreateOnly(context.Context, string, []byte, bool) (bool, error) {
	return false, errReadOnly
}

func (readOnly) CreateOnlyIfLocked(context.Context, string, []byte, bool, kvstore.KVLocker) (bool, error) {
	return false, errReadOnly
}

func (readOnly) ListPrefix(context.Context, string) (kvstore.KeyValuePairs, error) {
	return nil, errReadOnly
}

func (readOnly) ListPrefixIfLocked(context.Context, string, kvstore.KVLocker) (kvstore.KeyValuePairs, error) {
	return nil, errReadOnly
}

func (readOnly) RegisterLeaseExpiredObserver(string, func(string)) {}

func (readOnly) RegisterLockLeaseExpiredObserver(string, func(string)) {}

func (readOnly) UserEnforcePresence(context.Context, string, []string) error { return errReadOnly }

func (readOnly) UserEnforceAbsence(context.Context, string) error { return errReadOnly }
