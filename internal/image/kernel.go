package image

// A guest kernel is an image, too: one layer with a kernel, its configuration and its modules, laid out as Debian's packages have
// them (boot/vmlinuz-VERSION, boot/config-VERSION, lib/modules/VERSION), and the label or annotation that says so. It is pulled,
// checked, kept and removed as any image.

// GuestKernel is the key of a guest kernel's version.
const GuestKernel = "net.bulkhead.guest-kernel"

// KernelVersion is the version of the guest kernel that an image says it is; "" for any other image.
func KernelVersion(img Image) string {
	if v := img.Config.Labels[GuestKernel]; v != "" {
		return v
	}
	return img.Annotations[GuestKernel]
}
