package bridge

import (
	"context"
	"crypto/rand"
	"errors"

	"vic/bench/vcsim"
)

// suspend has the guest stand still. Its proxies are hung up on: no host has the VM.
func (m *machine) suspend(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.execute(ctx, "stop", nil); err != nil {
		return err
	}
	for i, s := range m.serials {
		if s.proxy != nil {
			if err := m.connect(ctx, i, nowhere()); err != nil {
				return err
			}
		}
	}
	return nil
}

// resume has a suspended guest go on.
func (m *machine) resume(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, s := range m.serials {
		if s.proxy != nil {
			if err := m.connect(ctx, i, s); err != nil {
				return err
			}
		}
	}
	return m.execute(ctx, "cont", nil)
}

// relocate tells the proxies of a running VM that it moves to another host, as the two hosts of a vMotion do. If one of them does not agree, it stays.
func (m *machine) relocate(ctx context.Context, run func() vcsim.Outcome) (o vcsim.Outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.execute(ctx, "stop", nil); err != nil {
		return outcome(err)
	}
	var moves []*move
	defer func() {
		var err error
		for _, v := range moves {
			if o.Fault == nil {
				err = errors.Join(err, v.commit())
			} else {
				err = errors.Join(err, v.abort())
			}
		}
		if err = errors.Join(err, m.execute(ctx, "cont", nil)); err != nil && o.Fault == nil {
			o = outcome(err)
		}
	}()
	for _, x := range m.proxied {
		if x == nil {
			continue
		}
		sequence := make([]byte, 4)
		rand.Read(sequence)
		v, err := x.begin(ctx, sequence)
		if err != nil {
			return outcome(err)
		}
		moves = append(moves, v)
	}
	return run()
}
