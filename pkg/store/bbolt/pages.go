package bbolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The layout of bbolt's pages, in the byte order of the machine. A page begins with its number (8 bytes), kind (2), number
// of elements (2) and how many pages follow that belong to it (4). An element of a branch has offset, key size (4 each) and
// a page number (8); one of a leaf has flags, offset, key size and value size (4 each). Offsets count from the element.
const (
	pageHeaderBytes = 16
	elementBytes    = 16
	branchPage      = 1
	leafPage        = 2
	freePage        = 16
	bucketFlag      = 1
	// metaBytes is the first page's record: magic, version, page size, flags (4 each), root page, sequence, free list, number
	// of pages, transaction, checksum (8 each).
	metaBytes = 16 + 6*8
	// noFreeList stands for a free list that is not kept in the file.
	noFreeList = ^uint64(0)
)

// pages walks over the pages of a file without trusting any number in it. bbolt's own check follows them into memory that
// is not there, in circles, or for billions of steps; what passes here lets it end, and soon.
type pages struct {
	file     io.ReaderAt
	pageSize int
	count    uint64
	seen     map[uint64]struct{}
}

// check walks from the state that transaction wrote.
func (p *pages) check(transaction uint64) error {
	p.seen = make(map[uint64]struct{})
	for id := range uint64(2) {
		meta := make([]byte, pageHeaderBytes+metaBytes)
		if _, err := p.file.ReadAt(meta, int64(id)*int64(p.pageSize)); err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		meta = meta[pageHeaderBytes:]
		if binary.NativeEndian.Uint64(meta[48:]) != transaction {
			continue
		}
		if err := p.tree(binary.NativeEndian.Uint64(meta[16:])); err != nil {
			return err
		}
		list := binary.NativeEndian.Uint64(meta[32:])
		if list == noFreeList {
			return nil
		}
		return p.freeList(list)
	}
	return fmt.Errorf("no first page is of transaction %d", transaction)
}

// read returns a page with all that belongs to it, once.
func (p *pages) read(id uint64) ([]byte, error) {
	if id < 2 || id >= p.count {
		return nil, fmt.Errorf("page %d is referred to, there are %d", id, p.count)
	}
	header := make([]byte, pageHeaderBytes)
	if _, err := p.file.ReadAt(header, int64(id)*int64(p.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	if got := binary.NativeEndian.Uint64(header); got != id {
		return nil, fmt.Errorf("page %d has number %d", id, got)
	}
	more := uint64(binary.NativeEndian.Uint32(header[12:]))
	if id+more >= p.count {
		return nil, fmt.Errorf("page %d goes on for %d pages, there are %d", id, more, p.count)
	}
	for i := id; i <= id+more; i++ {
		if _, twice := p.seen[i]; twice {
			return nil, fmt.Errorf("page %d is referred to twice", i)
		}
		p.seen[i] = struct{}{}
	}
	content := make([]byte, (1+more)*uint64(p.pageSize))
	if _, err := p.file.ReadAt(content, int64(id)*int64(p.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return content, nil
}

// tree checks the page and everything below it.
func (p *pages) tree(id uint64) error {
	content, err := p.read(id)
	if err != nil {
		return err
	}
	if err := p.elements(content); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks that every element lies in content, and walks on to the pages that they name.
func (p *pages) elements(content []byte) error {
	if len(content) < pageHeaderBytes {
		return fmt.Errorf("%d bytes are no page", len(content))
	}
	kind := binary.NativeEndian.Uint16(content[8:])
	count := int(binary.NativeEndian.Uint16(content[10:]))
	switch {
	case kind != branchPage && kind != leafPage:
		return fmt.Errorf("kind %d", kind)
	case kind == branchPage && count == 0:
		return errors.New("a branch without elements")
	case pageHeaderBytes+count*elementBytes > len(content):
		return fmt.Errorf("%d elements in %d bytes", count, len(content))
	}
	for i := range count {
		element := content[pageHeaderBytes+i*elementBytes:]
		var err error
		if kind == branchPage {
			err = p.branch(element)
		} else {
			err = p.leaf(element)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *pages) branch(element []byte) error {
	offset, size := uint64(binary.NativeEndian.Uint32(element)), uint64(binary.NativeEndian.Uint32(element[4:]))
	if offset+size > uint64(len(element)) {
		return errors.New("a key outside of its page")
	}
	return p.tree(binary.NativeEndian.Uint64(element[8:]))
}

func (p *pages) leaf(element []byte) error {
	flags, offset := binary.NativeEndian.Uint32(element), uint64(binary.NativeEndian.Uint32(element[4:]))
	key, value := uint64(binary.NativeEndian.Uint32(element[8:])), uint64(binary.NativeEndian.Uint32(element[12:]))
	if offset+key+value > uint64(len(element)) {
		return errors.New("an entry outside of its page")
	}
	if flags&bucketFlag == 0 {
		return nil
	}
	// A bucket: its root page, a sequence, and, where the root is 0, a page of its own inside of the value.
	bucket := element[offset+key : offset+key+value]
	if len(bucket) < 16 {
		return errors.New("a bucket without a root page")
	}
	if root := binary.NativeEndian.Uint64(bucket); root != 0 {
		return p.tree(root)
	}
	return p.elements(bucket[16:])
}

// freeList checks the list of free pages: each is one of the file, and no page of a tree.
func (p *pages) freeList(id uint64) error {
	content, err := p.read(id)
	if err != nil {
		return fmt.Errorf("free list: %w", err)
	}
	if kind := binary.NativeEndian.Uint16(content[8:]); kind != freePage {
		return fmt.Errorf("free list: page %d has kind %d", id, kind)
	}
	list := content[pageHeaderBytes:]
	count := uint64(binary.NativeEndian.Uint16(content[10:]))
	if count == 0xFFFF { // too many for the field: the first number of the list is the count
		count, list = binary.NativeEndian.Uint64(list), list[8:]
	}
	if count > uint64(len(list))/8 {
		return fmt.Errorf("free list: %d pages in %d bytes", count, len(list))
	}
	for i := range count {
		free := binary.NativeEndian.Uint64(list[i*8:])
		if _, used := p.seen[free]; used || free < 2 || free >= p.count {
			return fmt.Errorf("free list: page %d cannot be free", free)
		}
	}
	return nil
}
