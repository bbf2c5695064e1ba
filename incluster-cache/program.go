// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// runningProgram is the file that this process runs, even if another one has taken its
// place since.
const runningProgram = "/proc/self/exe"

// programID tells the build in the executable at path from others: two that might read
// the same value differently have different ones. The version in the build information
// doesn't: a release that is built without its repository says "(devel)", whatever it
// is. The linker's build ID is a hash of all that went into the program, and is read in
// a fifth of a millisecond. Where a build leaves it out, the whole file is hashed: 70 ms
// for 150 MB that are in memory, and as long as it takes to read them where they aren't.
func programID(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("identifying this program: %w", err)
	}
	defer file.Close()
	if id := linkerID(file); id != "" {
		return "build " + id, nil
	}
	hash := xxhash.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", fmt.Errorf("identifying this program: %w", err)
	}
	return "hash " + strconv.FormatUint(hash.Sum64(), 16), nil
}

// goNoteHeader is what comes before the build ID in its note: three numbers and the
// name "Go", padded to four bytes.
const goNoteHeader = 16

// linkerID is the Go linker's build ID of a program; empty if it has none. It leaves
// the file's position alone.
func linkerID(file io.ReaderAt) string {
	program, err := elf.NewFile(file)
	if err != nil {
		return ""
	}
	section := program.Section(".note.go.buildid")
	if section == nil {
		return ""
	}
	note, err := section.Data()
	if err != nil || len(note) <= goNoteHeader {
		return ""
	}
	// It has some 80 characters, of which nobody reads any.
	return strconv.FormatUint(xxhash.Sum64(note[goNoteHeader:]), 16)
}
