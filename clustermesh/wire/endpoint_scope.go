// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/json"
)

// regionalSuffix ends a regional endpoint as AppendEndpoint writes it.
const regionalSuffix = `,"SyncScope":"` + scopeRegional + `"}`

// EndpointScope is the Scope in an endpoint's value, the rest of which isn't looked
// at: for whoever carries values and decides by nothing else. Of every value that
// DecodeEndpoint takes it is the same (FuzzEndpointScope); of one that isn't JSON it
// may be either.
//
// It costs some tens of nanoseconds for a value of 200 bytes in the form that
// upstream or we write, and allocates nothing (BenchmarkEndpointScope). A value that
// has the field in another form, or may have it, is left to encoding/json.
func EndpointScope(value []byte) Scope {
	// The last brace closes the outermost object, and the last of several fields of
	// one name counts.
	if bytes.HasSuffix(value, []byte(regionalSuffix)) {
		return ScopeRegional
	}
	if !mayHaveScope(value) {
		return ScopeGlobal
	}
	var in struct{ SyncScope scopeJSON }
	if json.Unmarshal(value, &in) != nil {
		return ScopeGlobal
	}
	return Scope(in.SyncScope)
}

// mayHaveScope says whether encoding/json might find the field in value. Names are
// equal for it whatever the case of their letters, for which "ſ" counts as an "s", and
// may have escapes. It looks for the letter that other names and values have least of.
func mayHaveScope(value []byte) bool {
	return bytes.IndexByte(value, '\\') >= 0 || followedByScope(value, 'y') || followedByScope(value, 'Y')
}

// followedByScope says whether what follows some y may be the rest of the name.
func followedByScope(value []byte, y byte) bool {
	for {
		at := bytes.IndexByte(value, y)
		if at < 0 {
			return false
		}
		value = value[at+1:]
		rest := value
		if len(rest) < 3 || rest[0]|0x20 != 'n' || rest[1]|0x20 != 'c' {
			continue
		}
		switch rest = rest[2:]; {
		case rest[0]|0x20 == 's':
			rest = rest[1:]
		case bytes.HasPrefix(rest, []byte("ſ")):
			rest = rest[len("ſ"):]
		default:
			continue
		}
		if len(rest) >= 5 && rest[0]|0x20 == 'c' && rest[1]|0x20 == 'o' && rest[2]|0x20 == 'p' && rest[3]|0x20 == 'e' && rest[4] == '"' {
			return true
		}
	}
}
