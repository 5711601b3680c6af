package nat

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func (k *kernel) open() (*nftables.Conn, error) {
	if k.writer == nil {
		c, err := nftables.New(nftables.WithNetNSFd(k.netns), nftables.AsLasting())
		if err != nil {
			return nil, fmt.Errorf("open nftables: %w", err)
		}
		k.writer = c
	}
	return k.writer, nil
}

// flush commits what was queued. After an error more answers may be waiting on the socket, so it is not used again.
func (k *kernel) flush() error {
	err := k.writer.Flush()
	if err != nil {
		err = errors.Join(err, k.close())
	}
	return err
}

func (k *kernel) close() error {
	err := k.batch.close()
	if k.writer == nil {
		return err
	}
	c := k.writer
	k.writer = nil
	return errors.Join(err, c.CloseLasting())
}

// elementsPerMessage keeps an element list below the 64 KiB that one netlink attribute can hold.
const elementsPerMessage = 200

// write deletes and adds elements in one transaction.
func (k *kernel) write(del, add elements) error {
	if len(del) == 0 && len(add) == 0 {
		return nil
	}
	if k.batch.fd == 0 {
		if err := k.in(k.batch.open); err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
	}
	ms, err := messages(nil, unix.NFT_MSG_DELSETELEM, 0, del)
	if err == nil {
		ms, err = messages(ms, unix.NFT_MSG_NEWSETELEM, netlink.Create, add)
	}
	if err != nil {
		return err
	}
	if err := k.batch.commit(ms); err != nil {
		return fmt.Errorf("write %d and delete %d elements: %w", len(add), len(del), errors.Join(err, k.batch.close()))
	}
	return nil
}

// writeSeal stores the checksum in the table.
func (k *kernel) writeSeal(seal string) error {
	c, err := k.open()
	if err != nil {
		return err
	}
	set := &nftables.Set{Table: table, Name: setSeal}
	c.FlushSet(set)
	if err := c.SetAddElements(set, []nftables.SetElement{{Key: port(1), Comment: seal}}); err != nil {
		return errors.Join(fmt.Errorf("encode seal: %w", err), k.close())
	}
	if err := k.flush(); err != nil {
		return fmt.Errorf("write seal: %w", err)
	}
	return nil
}

// deleteTable removes our table; its absence is success.
func (k *kernel) deleteTable() error {
	c, err := k.open()
	if err != nil {
		return err
	}
	c.DelTable(table)
	if err := k.flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete table inet %s: %w", TableName, err)
	}
	return nil
}

// Counter is the value of a named counter.
type Counter struct{ Packets, Bytes uint64 }

// readCounters reads our named counters; none when there is no table.
func (k *kernel) readCounters() (map[string]Counter, error) {
	c, err := k.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	msgs, err := query(c, unix.NFT_MSG_GETOBJ, netlink.Dump)
	if err != nil {
		return nil, fmt.Errorf("dump counters: %w", err)
	}
	out := map[string]Counter{}
	for _, m := range msgs {
		ad, err := attributes(m.Data)
		if err != nil {
			return nil, err
		}
		var owner, name string
		var v Counter
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_OBJ_TABLE:
				owner = ad.String()
			case unix.NFTA_OBJ_NAME:
				name = ad.String()
			case unix.NFTA_OBJ_DATA:
				ad.Nested(v.decode)
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("decode counters: %w", err)
		}
		if owner == TableName && m.Data[0] == unix.NFPROTO_INET {
			out[name] = v
		}
	}
	return out, nil
}

func (v *Counter) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_COUNTER_BYTES:
			v.Bytes = ad.Uint64()
		case unix.NFTA_COUNTER_PACKETS:
			v.Packets = ad.Uint64()
		}
	}
	return ad.Err()
}
