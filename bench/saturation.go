// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/waggle-mesh/waggle/bench/page"
)

const (
	// sustainedQueue is for how long events may wait, on the average, at a rate that
	// counts as sustained: a queue that grows is longer than that in a second.
	sustainedQueue = 200 * time.Millisecond
	// offeredShare is the share of the rate that this process must have managed to
	// send: below, the sources are what is saturated.
	offeredShare = 0.97
	// bisections is how often the interval between the last rate that was sustained
	// and the first that wasn't is halved.
	bisections = 2
	// doublings bounds the search.
	doublings = 12
)

// SaturationStep is one rate that was tried.
type SaturationStep struct {
	Subject string  `json:"subject"`
	Rate    float64 `json:"rate"`
	// Offered is the rate at which events were really sent.
	Offered float64 `json:"offered"`
	// Sustained says that all was delivered, and that the queue when the last event
	// was sent was no more than 200 ms' worth of events.
	Sustained bool `json:"sustained"`
	ChurnFigures
}

// Saturated is what was found of one subject, in events per second.
type Saturated struct {
	// Sustained is the highest rate that was sustained, 0 if none was, and Beyond
	// the lowest that wasn't, 0 if none was tried.
	Sustained float64 `json:"sustained_rate"`
	Beyond    float64 `json:"beyond"`
	// BySources says that the search ended since no more could be sent.
	BySources bool `json:"by_sources"`
}

// SaturationReport is the outcome of Saturation. As JSON, each subject's
// Saturated is a field of its name.
type SaturationReport struct {
	Head
	Seconds  float64
	Subjects []string
	Found    map[string]Saturated
	Steps    []SaturationStep
}

// Saturation looks for the rate of change at which a subject no longer keeps up:
// it doubles the rate, from the configured one, until the queue grows, and then
// halves the interval. Each rate is a round of Churn, from empty.
func Saturation(ctx context.Context, config ChurnConfig) (*SaturationReport, error) {
	run, err := startChurns(ctx, config, "churn-saturation")
	if err != nil {
		return nil, err
	}
	defer run.close()
	report := &SaturationReport{Head: run.head, Seconds: config.Duration.Seconds(), Found: map[string]Saturated{}}
	for _, s := range run.subjects {
		report.Subjects = append(report.Subjects, s.name)
		found, err := report.search(func(rate float64) (SaturationStep, error) {
			run.progress("%s, %g/s for %s", s.name, rate, config.Duration)
			figures, err := run.round(ctx, s, rate)
			if err != nil {
				return SaturationStep{}, fmt.Errorf("%s at %g/s: %w", s.name, rate, err)
			}
			return stepOf(s.name, rate, figures), nil
		}, config.Rate)
		if err != nil {
			return nil, err
		}
		report.Found[s.name] = found
	}
	return report, nil
}

func stepOf(subject string, rate float64, f ChurnFigures) SaturationStep {
	return SaturationStep{
		Subject: subject, Rate: rate, Offered: float64(f.Sent) / f.Seconds,
		Sustained:    f.Drained && float64(f.QueueEnd) <= rate*sustainedQueue.Seconds(),
		ChurnFigures: f,
	}
}

// search tries rates from one on.
func (r *SaturationReport) search(try func(float64) (SaturationStep, error), from float64) (found Saturated, err error) {
	take := func(rate float64) (more bool, err error) {
		step, err := try(rate)
		if err != nil {
			return false, err
		}
		r.Steps = append(r.Steps, step)
		switch {
		case step.Offered < rate*offeredShare:
			found.BySources = true
			return false, nil
		case step.Sustained:
			found.Sustained = max(found.Sustained, rate)
		default:
			found.Beyond = rate
		}
		return true, nil
	}
	rate := from
	for range doublings {
		if more, err := take(rate); err != nil || !more {
			return found, err
		}
		if found.Beyond > 0 {
			break
		}
		rate *= 2
	}
	for range bisections {
		if found.Beyond == 0 || found.Sustained == 0 {
			break
		}
		if more, err := take((found.Sustained + found.Beyond) / 2); err != nil || !more {
			return found, err
		}
	}
	return found, nil
}

// MarshalJSON gives the report with a field for each subject.
func (r *SaturationReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	out["seconds"], out["steps"] = r.Seconds, r.Steps
	for name, found := range r.Found {
		out[name] = found
	}
	return json.Marshal(out)
}

// WriteText writes the report for a reader.
func (r *SaturationReport) WriteText(w io.Writer) error {
	r.writeText(w)
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, name := range r.Subjects {
		fmt.Fprintf(table, "\n%s: %s\nevents/s, %g s each\tsent/s\tp50\tp99\tqueue at the end\tevents per commit\tsustained\t\n",
			name, r.Allowed[name], r.Seconds)
		for _, s := range r.Steps {
			if s.Subject == name {
				fmt.Fprintf(table, "%.0f\t%.0f\t%s\t%s\t%d\t%.1f\t%t\t\n", s.Rate, s.Offered, milliseconds(s.P50), milliseconds(s.P99),
					s.QueueEnd, float64(s.CommitEvents)/float64(max(s.Commits, 1)), s.Sustained)
			}
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, name := range r.Subjects {
		found := r.Found[name]
		fmt.Fprintf(w, "%s sustains %.0f events/s", name, found.Sustained)
		switch {
		case found.BySources:
			fmt.Fprint(w, "; no more could be sent")
		case found.Beyond > 0:
			fmt.Fprintf(w, ", and not %.0f", found.Beyond)
		}
		fmt.Fprintln(w)
	}
	return nil
}

// Section is the report as a part of a page.
func (r *SaturationReport) Section() (page.Section, error) {
	latency := page.Plot{X: "events per second", Y: "p99, milliseconds", LogY: true}
	for i, name := range r.Subjects {
		line := page.Line{Name: name, Color: i}
		for _, s := range r.Steps {
			if s.Subject == name {
				line.Points = append(line.Points, page.Point{X: s.Rate, Y: s.P99})
			}
		}
		latency.Lines = append(latency.Lines, line)
	}
	figures, err := draw(drawing{"Latency against rate", "Each point is a run of its own, from empty.", latency})
	if err != nil {
		return page.Section{}, err
	}
	return section("Churn: where it saturates", r, figures)
}
