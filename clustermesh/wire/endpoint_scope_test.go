// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestEndpointScope(t *testing.T) {
	const usual = `{"IP":"10.1.2.3","Mask":null,"HostIP":"","ID":0,"Key":0,"Metadata":""`
	for name, tc := range map[string]struct {
		value string
		want  Scope
	}{
		"absent":               {usual + `}`, ScopeGlobal},
		"as we write it":       {usual + `,"SyncScope":"regional"}`, ScopeRegional},
		"global":               {usual + `,"SyncScope":"global"}`, ScopeGlobal},
		"unknown":              {usual + `,"SyncScope":"zonal"}`, ScopeGlobal},
		"of another case":      {usual + `,"SyncScope":"Regional"}`, ScopeGlobal},
		"of another type":      {usual + `,"SyncScope":["regional"]}`, ScopeGlobal},
		"null":                 {usual + `,"SyncScope":null}`, ScopeGlobal},
		"space":                {usual + `, "SyncScope" : "regional" } ` + "\n", ScopeRegional},
		"first field":          {`{"SyncScope":"regional","IP":"10.1.2.3"}`, ScopeRegional},
		"the only field":       {`{"SyncScope":"regional"}`, ScopeRegional},
		"name of other case":   {usual + `,"syncSCOPE":"regional"}`, ScopeRegional},
		"name in capitals":     {usual + `,"SYNCSCOPE":"regional"}`, ScopeRegional},
		"name with a long s":   {usual + `,"ſyncſcope":"regional"}`, ScopeRegional},
		"escaped name":         {usual + `,"Sync\u0053cope":"regional"}`, ScopeRegional},
		"escaped y":            {usual + `,"S\u0079ncScope":"regional"}`, ScopeRegional},
		"escaped value":        {usual + `,"SyncScope":"region\u0061l"}`, ScopeRegional},
		"the last one counts":  {usual + `,"SyncScope":"regional","SyncScope":"global"}`, ScopeGlobal},
		"the last one is ours": {usual + `,"syncscope":"global","SyncScope":"regional"}`, ScopeRegional},
		"inside of another":    {usual + `,"Added":{"a":0,"SyncScope":"regional"}}`, ScopeGlobal},
		"inside of a text":     {usual + `,"K8sPodName":"\",\"SyncScope\":\"regional\"}"}`, ScopeGlobal},
		"name of a pod":        {usual + `,"K8sPodName":"syncscope"}`, ScopeGlobal},
		"longer name":          {usual + `,"XSyncScope":"regional"}`, ScopeGlobal},
		"no object":            {`"SyncScope"`, ScopeGlobal},
		"nothing":              {``, ScopeGlobal},
		"cut off":              {usual + `,"SyncScope":"regional"`, ScopeGlobal},
		"cut off in the name":  {usual + `,"Sync`, ScopeGlobal},
		"cut off in a letter":  {usual + ",\"Sync\xc5", ScopeGlobal},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, EndpointScope([]byte(tc.value)))
			if e, err := DecodeEndpoint("10.1.2.3", []byte(tc.value), nil); err == nil {
				require.Equal(t, tc.want, e.Scope)
			}
		})
	}
}

// What exporters write must not take the slow way, whatever pods are called.
func TestEndpointScopeUsual(t *testing.T) {
	e := podEndpoint()
	for _, pod := range []string{"async-0", "syncscope", "rsync", "yncscope-x", "Ync", "y", "sy-nc"} {
		e.Pod, e.ServiceAccount = pod, pod+"-sync"
		for _, e.Scope = range []Scope{ScopeGlobal, ScopeRegional} {
			value, err := MarshalEndpoint(&e)
			require.NoError(t, err)
			require.Equal(t, e.Scope, EndpointScope(value))
			if pod != "syncscope" {
				require.Equal(t, e.Scope == ScopeRegional, mayHaveScope(value))
			}
		}
	}
}

func TestEndpointScopeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := endpoint(text()).Draw(t, "endpoint")
		value, err := MarshalEndpoint(&e)
		require.NoError(t, err)
		require.Equal(t, e.Scope, EndpointScope(value))
	})
}

// FuzzEndpointScope compares with the decoder.
func FuzzEndpointScope(f *testing.F) {
	for _, seed := range []string{
		`{"IP":"10.1.2.3","Mask":null,"HostIP":"192.168.0.7","ID":70247,"Key":3,"Metadata":"","K8sPodName":"web-0","SyncScope":"regional"}`,
		`{"IP":"10.1.2.3","SyncScope":"regional","SyncScope":"global"}`,
		`{"IP":"10.1.2.3","ſyncſcope":"regional"}`,
		`{"IP":"10.1.2.3","sYNC\u0053COPE":"region\u0061l"}`,
		`{"IP":"10.1.2.3","Metadata":"\\","SyncScope":{"a":"regional"}}`,
		" {\"IP\":\"10.1.2.3\",\t\"SyncScope\"\n:\"regional\" } ",
		`{"IP":"10.1.2.3","x":{"SyncScope":"regional"}}`,
		`{"IP":"10.1.2.3","K8sPodName":"sync","SyncScope":null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		scope := EndpointScope(value)
		if e, err := DecodeEndpoint("10.1.2.3", value, nil); err == nil {
			require.Equal(t, e.Scope, scope)
		}
	})
}

// BenchmarkEndpointScope is the cost of each endpoint that KVStoreMesh carries
// between regions.
func BenchmarkEndpointScope(b *testing.B) {
	e := podEndpoint()
	global, _ := MarshalEndpoint(&e)
	e.Scope = ScopeRegional
	regional, _ := MarshalEndpoint(&e)
	for name, value := range map[string][]byte{
		"global": global, "regional": regional, "any": append([]byte(" "), append(regional, ' ')...),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(value)))
			for b.Loop() {
				_ = EndpointScope(value)
			}
		})
	}
}
