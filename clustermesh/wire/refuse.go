// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import "fmt"

// refuse makes a Refusal whose detail is formatted as by fmt.Errorf.
func refuse(r Resource, key string, reason Reason, format string, args ...any) error {
	return &Refusal{Resource: r, Key: key, Reason: reason, Err: fmt.Errorf(format, args...)}
}
