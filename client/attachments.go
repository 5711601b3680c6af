package client

import (
	"context"
	"net/url"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

const attachments = "/v1/attachments"

func attachment(id hcn.GUID) string { return attachments + "/" + segment(string(id)) }

// Attach gives a container of another runtime a place on a network. Asked for twice it is one.
func (c *Client) Attach(ctx context.Context, spec api.AttachmentSpec) (*api.Attachment, error) {
	made := new(api.Attachment)
	if err := c.call(ctx, post(attachments, nil, spec), made); err != nil {
		return nil, err
	}
	return made, nil
}

// Detach takes it away.
func (c *Client) Detach(ctx context.Context, id hcn.GUID) error {
	return c.call(ctx, remove(attachment(id), nil), nil)
}

// Attachments lists those of an owner, or of all if it is "".
func (c *Client) Attachments(ctx context.Context, owner string) (list []api.Attachment, err error) {
	var v url.Values
	if owner != "" {
		v = url.Values{"owner": {owner}}
	}
	err = c.call(ctx, get(attachments, v), &list)
	return list, err
}

// Attachment shows one.
func (c *Client) Attachment(ctx context.Context, id hcn.GUID) (*api.Attachment, error) {
	a := new(api.Attachment)
	if err := c.call(ctx, get(attachment(id), nil), a); err != nil {
		return nil, err
	}
	return a, nil
}

// CheckAttachment shows one, and fails if it is not as it was made.
func (c *Client) CheckAttachment(ctx context.Context, id hcn.GUID) (*api.Attachment, error) {
	a := new(api.Attachment)
	if err := c.call(ctx, post(attachment(id)+"/check", nil, nil), a); err != nil {
		return nil, err
	}
	return a, nil
}

// CollectAttachments detaches what an owner does not keep, and says what that was.
func (c *Client) CollectAttachments(ctx context.Context, gc api.AttachmentGC) (gone []hcn.GUID, err error) {
	err = c.call(ctx, post(attachments+"/gc", nil, gc), &gone)
	return gone, err
}
