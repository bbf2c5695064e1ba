// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSaturationSearch looks for the limit of a subject that is known.
func TestSaturationSearch(t *testing.T) {
	search := func(limit, sources float64) (Saturated, []float64) {
		report := &SaturationReport{}
		found, err := report.search(func(rate float64) (SaturationStep, error) {
			return SaturationStep{Rate: rate, Offered: min(rate, sources), Sustained: rate <= limit}, nil
		}, 1000)
		require.NoError(t, err)
		var rates []float64
		for _, s := range report.Steps {
			rates = append(rates, s.Rate)
		}
		return found, rates
	}
	found, rates := search(5500, 1e9)
	require.Equal(t, Saturated{Sustained: 5000, Beyond: 6000}, found)
	require.Equal(t, []float64{1000, 2000, 4000, 8000, 6000, 5000}, rates)

	found, rates = search(100, 1e9)
	require.Equal(t, Saturated{Beyond: 1000}, found)
	require.Equal(t, []float64{1000}, rates)

	found, _ = search(1e9, 3000)
	require.Equal(t, Saturated{Sustained: 2000, BySources: true}, found)

	failure := errors.New("failed")
	_, err := (&SaturationReport{}).search(func(float64) (SaturationStep, error) { return SaturationStep{}, failure }, 1000)
	require.ErrorIs(t, err, failure)
}

func TestStepIsSustained(t *testing.T) {
	f := ChurnFigures{Sent: 10_000, Seconds: 10, Drained: true, QueueEnd: 200}
	require.True(t, stepOf(Waggle, 1000, f).Sustained)
	require.InDelta(t, 1000, stepOf(Waggle, 1000, f).Offered, 1e-9)
	f.QueueEnd++
	require.False(t, stepOf(Waggle, 1000, f).Sustained, "the queue is too long")
	f.QueueEnd, f.Drained = 0, false
	require.False(t, stepOf(Waggle, 1000, f).Sustained, "something was never delivered")
}
