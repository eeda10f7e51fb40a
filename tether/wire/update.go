package wire

import "context"

// Update is what of a Config can change while the container runs. It is whole: what is zero is none.
type Update struct {
	Restart Restart `json:"restart,omitzero"` // its Done is the guest's to count
	Limits  Limits  `json:"limits,omitzero"`
}

// Update has the guest keep another restart policy and other limits from now on.
func (c *Conn) Update(ctx context.Context, u Update) error {
	_, err := c.call(ctx, Request{Op: OpUpdate, Update: &u})
	return err
}
