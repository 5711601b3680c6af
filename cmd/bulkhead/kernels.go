package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/image"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
)

// kernels shows the engine which kernels there are: the host's, the one that is installed for VMs, and those among the images.
type kernels struct {
	images *image.Store
	vms    *vm.Host
}

func (k kernels) Host(imageID string) error {
	img, err := k.images.Inspect(imageID)
	if err != nil {
		return imageError(err)
	}
	return imageError(image.CheckKernel(img, k.images.Facts()))
}

func (k kernels) Guest(ctx context.Context, imageID, want string) (string, error) {
	img, err := k.images.Inspect(imageID)
	if err != nil {
		return "", imageError(err)
	}
	if want != "" {
		found, err := k.images.Inspect(want)
		if errors.Is(err, image.ErrNotFound) {
			return "", api.Errorf(api.KindNotFound, "guest kernel: %w", err).Hint("bulkhead pull %s, or bulkhead image import-kernel %s", want, want)
		}
		if err != nil {
			return "", imageError(err)
		}
		guest, err := k.ofImage(ctx, found)
		if err != nil {
			return "", api.Errorf(api.KindInvalid, "guest kernel %s: %w", want, err).Hint("bulkhead image import-kernel makes an image of a kernel")
		}
		return found.ID, fits(img, guest)
	}
	installed, err := k.vms.Kernel("")
	missing := err != nil // whether that matters shows below; with what else is missing it is told by who makes VMs
	if !missing {
		if err = fits(img, installed); err == nil {
			return "", nil
		}
	}
	id, ferr := k.newest(ctx, img)
	switch {
	case ferr != nil:
		return "", ferr
	case id == "" && !missing:
		return "", err
	}
	return id, nil
}

// newest finds the newest kernel among the images that has what an image demands; "": there is none.
func (k kernels) newest(ctx context.Context, img image.Image) (id string, err error) {
	all, err := k.images.List()
	if err != nil {
		return "", imageError(err)
	}
	var best vm.Kernel
	for _, candidate := range all {
		if image.KernelVersion(candidate) == "" {
			continue
		}
		guest, err := k.ofImage(ctx, candidate)
		if err != nil || fits(img, guest) != nil {
			continue // one that is no kernel is refused when somebody names it
		}
		if id == "" || guest.Newer(best) {
			id, best = candidate.ID, guest
		}
	}
	return id, nil
}

// ofImage finds the kernel in an image.
func (k kernels) ofImage(ctx context.Context, img image.Image) (vm.Kernel, error) {
	if len(img.Layers) != 1 {
		return vm.Kernel{}, fmt.Errorf("it has %d layers, and the image of a kernel has one", len(img.Layers))
	}
	dirs, err := k.images.Layers(ctx, img.ID)
	if err != nil {
		return vm.Kernel{}, err
	}
	return k.vms.Kernel(dirs[0])
}

// fits says what a guest's kernel lacks for an image.
func fits(img image.Image, k vm.Kernel) error {
	f := image.Facts{KernelRelease: k.Version}
	config, err := k.Config()
	if err != nil {
		return err
	}
	if config != nil {
		f.KernelConfig = image.ParseKernelConfig(config)
	}
	err = image.CheckKernel(img, f)
	if lacks, ok := errors.AsType[*image.IncompatibleError](err); ok {
		told := *lacks
		told.Where, told.Advice = "guest kernel "+k.Version, ""
		return api.Errorf(api.KindUnsupported, "%w", &told).
			Hint("pull a guest kernel that does, or make one with bulkhead image import-kernel")
	}
	return err
}
