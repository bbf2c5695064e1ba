// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Arrival is when a state of an object was in an agent's table.
type Arrival struct {
	Mark Mark
	At   time.Time
}

// An agent's arrivals are written as their number, and for each one the mark and
// the time in nanoseconds since 1970: hundreds of agents have millions of them.
const arrivalBytes = 16

func writeArrivals(w io.Writer, arrivals []Arrival) error {
	raw := binary.LittleEndian.AppendUint64(nil, uint64(len(arrivals)))
	for _, a := range arrivals {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(a.Mark))
		raw = binary.LittleEndian.AppendUint64(raw, uint64(a.At.UnixNano()))
	}
	_, err := w.Write(raw)
	return err
}

// readArrivals gives each agent's arrivals to fn, in the order in which they came,
// until its first error.
func readArrivals(r io.Reader, fn func([]Arrival) error) error {
	in := bufio.NewReader(r)
	for {
		var head [8]byte
		switch _, err := io.ReadFull(in, head[:]); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading arrivals: %w", err)
		}
		arrivals := make([]Arrival, binary.LittleEndian.Uint64(head[:]))
		for i := range arrivals {
			var raw [arrivalBytes]byte
			if _, err := io.ReadFull(in, raw[:]); err != nil {
				return fmt.Errorf("reading arrivals: %w", err)
			}
			arrivals[i] = Arrival{
				Mark: Mark(binary.LittleEndian.Uint64(raw[:8])),
				At:   time.Unix(0, int64(binary.LittleEndian.Uint64(raw[8:]))),
			}
		}
		if err := fn(arrivals); err != nil {
			return err
		}
	}
}
