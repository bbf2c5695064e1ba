// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"

	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// A snapshot file holds what an agent knew of its own cluster, so that the next one
// on the node begins there. It is:
//
//	snapshotMagic, a line of text with the version
//	the rest, compressed by zstd:
//	    a line of JSON, the snapshotHeader
//	    for each resource of the header, in its order:
//	        entries: entryRow or entryWaiting, the lengths of key and value, key, value
//	        entriesEnd, and their number
//	    the xxHash (64 bits) of all of that
//
// Numbers are varints, the hash has its eight bytes in little-endian order.
//
// Compressed, that of 100,000 endpoints is 2.6 MB instead of 21, and /var/run is memory
// on most nodes. Writing it takes 0.18 s of a core and 3.4 MB, since it goes from the
// tables to the file row by row; reading and checking it takes 0.1 s, and then as long
// as the tables take for as many rows of a list, 0.9 s (BenchmarkSnapshot).
//
// Another version is another file: there is no reading of older ones, since all that
// a snapshot spares is a list.
const (
	snapshotName    = "waggle snapshot "
	snapshotVersion = "1"
	snapshotMagic   = snapshotName + snapshotVersion + "\n"
)

const (
	entriesEnd byte = iota
	entryRow
	entryWaiting
)

const (
	// maxSnapshotHeader and maxSnapshotKey bound what a file can have a reader
	// allocate; the bound of a value is that of etcd's (wire.MaxValueBytes).
	maxSnapshotHeader = 64 << 10
	maxSnapshotKey    = 1 << 10
	// maxSnapshotWindow bounds the memory of the decompression; the writer's window
	// is snapshotWindow.
	maxSnapshotWindow = 8 << 20
	snapshotWindow    = 1 << 20
	// entriesAtOnce is how many entries are restored in one transaction, as many as
	// ingest takes of a list at once.
	entriesAtOnce = 8192
)

// snapshotHeader says what a snapshot is of.
type snapshotHeader struct {
	Cluster   string    `json:"cluster"`
	ClusterID uint32    `json:"clusterID"`
	Created   time.Time `json:"created"`
	// Program is the build that wrote it. What another one has in its tables may be
	// less than what this one would make of the same values, and a watch would never
	// bring the rest: then the positions don't count (see restorer).
	Program string `json:"program"`
	// Resources are in the order in which they are to be restored.
	Resources []ingest.SavedPosition `json:"resources"`
}

// Reasons why a snapshot isn't used; errors.Is tells them. They are metric labels.
var (
	// errSnapshotTorn says that a snapshot isn't what was written.
	errSnapshotTorn = errors.New("torn")
	// errSnapshotVersion says that it isn't one that this program reads.
	errSnapshotVersion = errors.New("another version")
	// errSnapshotForeign says that it is another cluster's.
	errSnapshotForeign = errors.New("another cluster's")
)

// writeSnapshot writes a snapshot in one pass, and keeps nothing of it: its memory is
// that of the compression, some 4 MiB, whatever the tables hold.
func writeSnapshot(w io.Writer, header snapshotHeader, entries func(wire.Resource, func(ingest.Entry) error) error) error {
	if _, err := io.WriteString(w, snapshotMagic); err != nil {
		return err
	}
	// Not concurrent: an agent's snapshot must not take more than a core.
	compressed, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(snapshotWindow), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return err
	}
	hash := xxhash.New()
	out := bufio.NewWriterSize(io.MultiWriter(hash, compressed), 64<<10)
	line, err := json.Marshal(header)
	if err != nil {
		return err
	}
	out.Write(line) // a bufio.Writer keeps its error for Flush
	out.WriteByte('\n')
	var numbers []byte
	for _, resource := range header.Resources {
		count := uint64(0)
		err := entries(resource.Resource, func(e ingest.Entry) error {
			count++
			kind := entryRow
			if e.Waits {
				kind = entryWaiting
			}
			numbers = binary.AppendUvarint(append(numbers[:0], kind), uint64(len(e.Key)))
			numbers = binary.AppendUvarint(numbers, uint64(len(e.Value)))
			out.Write(numbers)
			out.WriteString(e.Key)
			_, err := out.Write(e.Value)
			return err
		})
		if err != nil {
			return fmt.Errorf("writing %s: %w", resource.Resource, err)
		}
		out.Write(binary.AppendUvarint([]byte{entriesEnd}, count))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if _, err := compressed.Write(binary.LittleEndian.AppendUint64(nil, hash.Sum64())); err != nil {
		return err
	}
	return compressed.Close()
}

// readSnapshot reads a snapshot to its end and checks all of it. take, if not nil, is
// given the entries in batches, before it is known whether the rest is good: who
// changes anything by them reads twice. It may keep them. The error is one of take, or
// wraps one of those above.
func readSnapshot(r io.Reader, cluster wire.ClusterInfo, take func(wire.Resource, []ingest.Entry) error) (snapshotHeader, error) {
	var header snapshotHeader
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return header, torn("reading its version", err)
	}
	if string(magic) != snapshotMagic {
		if !bytes.HasPrefix(magic, []byte(snapshotName)) {
			return header, fmt.Errorf("%w: it doesn't begin as a snapshot does", errSnapshotTorn)
		}
		return header, fmt.Errorf("%w: %q, and this program reads %q", errSnapshotVersion,
			bytes.TrimSpace(magic[len(snapshotName):]), snapshotVersion)
	}
	decompressed, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxSnapshotWindow),
		zstd.WithDecoderLowmem(true))
	if err != nil {
		return header, err
	}
	defer decompressed.Close()
	in := &snapshotReader{in: bufio.NewReaderSize(decompressed, 64<<10), hash: xxhash.New()}
	if header, err = in.header(); err != nil {
		return header, err
	}
	if header.Cluster != cluster.Name || header.ClusterID != cluster.ID {
		return header, fmt.Errorf("%w: it is of cluster %q, ID %d, and this is %q, ID %d", errSnapshotForeign,
			header.Cluster, header.ClusterID, cluster.Name, cluster.ID)
	}
	seen := map[wire.Resource]bool{}
	for _, resource := range header.Resources {
		if !slices.Contains(wire.CacheResources, resource.Resource) || seen[resource.Resource] {
			return header, fmt.Errorf("%w: %.64q is nothing that an agent reads, or is there twice", errSnapshotTorn, resource.Resource)
		}
		seen[resource.Resource] = true
		if err := in.entries(resource.Resource, take); err != nil {
			return header, err
		}
	}
	return header, in.end()
}

// torn wraps what went wrong in a file that can be read.
func torn(doing string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it ends too early")
	}
	return fmt.Errorf("%w: %s: %w", errSnapshotTorn, doing, err)
}

// snapshotReader reads what was compressed.
type snapshotReader struct {
	in   *bufio.Reader
	hash *xxhash.Digest
	one  [1]byte
}

// ReadByte implements io.ByteReader.
func (s *snapshotReader) ReadByte() (byte, error) {
	b, err := s.in.ReadByte()
	if err == nil {
		s.one[0] = b
		s.hash.Write(s.one[:])
	}
	return b, err
}

func (s *snapshotReader) header() (header snapshotHeader, err error) {
	var line []byte
	for {
		part, err := s.in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxSnapshotHeader {
			return header, fmt.Errorf("%w: its header doesn't end", errSnapshotTorn)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return header, torn("reading its header", err)
		}
	}
	s.hash.Write(line)
	if err := json.Unmarshal(line, &header); err != nil {
		return header, torn("reading its header", err)
	}
	return header, nil
}

// entries reads those of one resource.
func (s *snapshotReader) entries(resource wire.Resource, take func(wire.Resource, []ingest.Entry) error) error {
	var batch []ingest.Entry
	flush := func() error {
		if len(batch) == 0 || take == nil {
			return nil
		}
		full := batch
		batch = nil
		return take(resource, full)
	}
	for count := uint64(0); ; count++ {
		kind, err := s.ReadByte()
		if err != nil {
			return torn("reading "+string(resource), err)
		}
		if kind == entriesEnd {
			if want, err := binary.ReadUvarint(s); err != nil {
				return torn("reading "+string(resource), err)
			} else if want != count {
				return fmt.Errorf("%w: it has %d %s of %d", errSnapshotTorn, count, resource, want)
			}
			return flush()
		}
		if kind > entryWaiting {
			return fmt.Errorf("%w: an entry of %s is of no kind (%d)", errSnapshotTorn, resource, kind)
		}
		key, value, err := s.entry(take != nil)
		if err != nil {
			return torn("reading "+string(resource), err)
		}
		if take == nil {
			continue
		}
		batch = append(batch, ingest.Entry{Key: key, Value: value, Waits: kind == entryWaiting})
		if len(batch) == entriesAtOnce {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

// entry reads one key and its value, or passes over them.
func (s *snapshotReader) entry(keep bool) (key string, value []byte, err error) {
	var lengths [2]int
	for i, limit := range []uint64{maxSnapshotKey, wire.MaxValueBytes} {
		length, err := binary.ReadUvarint(s)
		if err != nil {
			return "", nil, err
		}
		if length > limit {
			return "", nil, fmt.Errorf("%d bytes are more than an entry has", length)
		}
		lengths[i] = int(length)
	}
	length := lengths[0] + lengths[1]
	if !keep {
		for length > 0 {
			part, err := s.in.Peek(min(length, s.in.Size()))
			if err != nil {
				return "", nil, err
			}
			s.hash.Write(part)
			length -= len(part)
			if _, err := s.in.Discard(len(part)); err != nil {
				return "", nil, err
			}
		}
		return "", nil, nil
	}
	both := make([]byte, length)
	if _, err := io.ReadFull(s.in, both); err != nil {
		return "", nil, err
	}
	s.hash.Write(both)
	return string(both[:lengths[0]]), both[lengths[0]:], nil
}

// end checks the hash, and that nothing comes after it.
func (s *snapshotReader) end() error {
	var hash [8]byte
	if _, err := io.ReadFull(s.in, hash[:]); err != nil {
		return torn("reading its checksum", err)
	}
	if got := binary.LittleEndian.Uint64(hash[:]); got != s.hash.Sum64() {
		return fmt.Errorf("%w: its checksum is %x, and that of what it holds %x", errSnapshotTorn, got, s.hash.Sum64())
	}
	switch _, err := s.in.ReadByte(); {
	case err == nil:
		return fmt.Errorf("%w: something follows its checksum", errSnapshotTorn)
	case !errors.Is(err, io.EOF):
		return torn("reading its end", err)
	}
	return nil
}
