package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newImageCmd(a *app) *cobra.Command {
	list := newImagesCmd(a)
	list.Use, list.Aliases = "ls", []string{"list"}
	list.Example = "  bulkhead image ls"
	return group("image", "Images", "Images come from OCI registries, or from an archive of a root file system.",
		"  bulkhead image pull registry.example/web:1\n  bulkhead image ls",
		list, newPullCmd(a), newPushCmd(a), newImageImportCmd(a), newImportKernelCmd(a), newInspectKindCmd(a, "image", kindImage),
		newImageRmCmd(a), newImagePruneCmd(a), newImageTagCmd(a), newLoginCmd(a), newLogoutCmd(a))
}

// imageName is what people call an image.
func imageName(i api.Image) string {
	if len(i.Names) > 0 {
		return i.Names[0]
	}
	if len(i.Digests) > 0 {
		return i.Digests[0]
	}
	return shortID(i.ID)
}

func newImagesCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "images",
		Short:   "List images",
		Long:    "Lists the images in the local store. SIZE is that of the compressed layers.",
		Example: "  bulkhead images\n  bulkhead images -o name",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		images, err := c.Images(cmd.Context())
		if err != nil {
			return err
		}
		slices.SortStableFunc(images, func(x, y api.Image) int { return cmp.Compare(imageName(x), imageName(y)) })
		return show(a, form, listing[api.Image]{
			items: images,
			name:  imageName,
			head:  []string{"NAME", "IMAGE ID", "CREATED", "SIZE", "PLATFORM", "CONTAINERS"},
			row: func(i api.Image) []any {
				created := "-"
				if !i.Created.IsZero() {
					created = ago(a.Now().Sub(i.Created)) + " ago"
				}
				platform := strings.TrimSuffix(i.OS+"/"+i.Architecture+"/"+i.Variant, "/")
				return []any{strings.Join(i.Names, ", "), shortID(i.ID), created, size(i.Size), platform, i.Containers}
			},
		})
	})
	return cmd
}

// registryFlags are the flags of pull and push.
type registryFlags struct {
	quiet, plainHTTP bool
	credentials      string
}

func (f *registryFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress")
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "talk to the registry without encryption; on loopback that is always allowed")
	flags.StringVar(&f.credentials, "creds-file", "", "read USER:PASSWORD for the registry from a file, - for standard input")
}

func (f *registryFlags) request(a *app, ref string) (api.PullRequest, error) {
	r := api.PullRequest{Reference: ref, PlainHTTP: f.plainHTTP}
	if f.credentials == "" {
		var err error
		r.Auth, err = a.storedAuth(ref)
		return r, err
	}
	in := a.Stdin
	if f.credentials != "-" {
		file, err := os.Open(f.credentials)
		if err != nil {
			return r, fmt.Errorf("read credentials: %w", err)
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, 64<<10))
	if err != nil {
		return r, fmt.Errorf("read credentials: %w", err)
	}
	user, password, ok := strings.Cut(strings.TrimSpace(string(text)), ":")
	if !ok || user == "" {
		return r, api.Errorf(api.KindInvalid, "the credentials are not USER:PASSWORD").Hint("put one such line into the file")
	}
	r.Auth = &api.RegistryAuth{Username: user, Password: password}
	return r, nil
}

func newPullCmd(a *app) *cobra.Command {
	var f registryFlags
	cmd := &cobra.Command{
		Use:   "pull [flags] IMAGE",
		Short: "Pull an image from a registry",
		Long: `Pulls an image by tag or digest and prints its ID. The daemon uses the mirrors that are set
up on the host and the credentials of "bulkhead login"; --creds-file goes before those. Where it
has none for the registry, those go along that Docker's or Podman's files keep for you.`,
		Example: `  bulkhead pull registry.example/web:1
  bulkhead pull --plain-http registry.lan:5000/tools`,
		Args: needArgs(1, 1, "image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.request(a, args[0])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			p := a.progress(f.quiet)
			image, err := c.PullImage(cmd.Context(), r, p.show)
			p.close(err)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Stdout, image.ID)
			return err
		},
	}
	f.add(cmd)
	return cmd
}

// ensureImage has the daemon get an image if the policy says so. Nothing is shown
// when there was nothing to get.
func (a *app) ensureImage(ctx context.Context, c *client.Client, ref, policy string) error {
	auth, err := a.storedAuth(ref)
	if err != nil {
		return err
	}
	p := a.progress(false)
	_, err = c.PullImage(ctx, api.PullRequest{Reference: ref, Policy: policy, Auth: auth}, p.show)
	p.close(err)
	var e *api.Error
	if policy == pullNever && errors.As(err, &e) && e.Next == "" {
		return api.Errorf(e.Kind, "%w", err).Hint("bulkhead pull %s, or drop --pull never", ref)
	}
	return err
}

func newPushCmd(a *app) *cobra.Command {
	var f registryFlags
	cmd := &cobra.Command{
		Use:               "push [flags] IMAGE",
		Short:             "Push an image to a registry",
		Long:              "Pushes an image of the local store to the registry that its name says.",
		Example:           "  bulkhead tag web registry.lan:5000/web:2\n  bulkhead push registry.lan:5000/web:2",
		Args:              needArgs(1, 1, "image"),
		ValidArgsFunction: a.completeFirst(a.completeImages),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.request(a, args[0])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			p := a.progress(f.quiet)
			err = c.PushImage(cmd.Context(), r, p.show)
			p.close(err)
			return err
		},
	}
	cmd.Example = "  bulkhead image tag web registry.lan:5000/web:2\n  bulkhead push registry.lan:5000/web:2"
	f.add(cmd)
	return cmd
}

func newImageTagCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "tag IMAGE NAME",
		Short:             "Give an image a further name",
		Long:              "Gives an image a further name. A name that another image has moves to this one.",
		Example:           "  bulkhead image tag registry.example/web:1 web",
		Args:              needArgs(2, 2, "image or name"),
		ValidArgsFunction: a.completeEach(a.completeImages),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return c.TagImage(cmd.Context(), args[0], args[1])
		},
	}
}

func newImageRmCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm [flags] IMAGE…",
		Short:             "Remove images",
		Long:              "Removes names of images, and an image with its last name. One that containers use stays.",
		Example:           "  bulkhead image rm registry.example/web:1",
		Args:              needNames("image"),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return c.RemoveImage(ctx, name, force)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also an image that has several names, named by its ID")
	return cmd
}

func newImagePruneCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "prune",
		Short:   "Remove images that have no name and no container",
		Long:    "Removes what no name leads to and no container uses, and prints what was removed.",
		Example: "  bulkhead image prune",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			removed, err := c.PruneImages(cmd.Context())
			for _, id := range removed {
				fmt.Fprintln(a.Stdout, clean(id))
			}
			return err
		},
	}
}

func newImageImportCmd(a *app) *cobra.Command {
	var config api.ImageConfig
	var labels, entrypoint, command []string
	cmd := &cobra.Command{
		Use:   "import [flags] FILE NAME",
		Short: "Make an image of an archive of a root file system",
		Long:  "Makes an image with one layer of a tar archive, compressed or not; - reads standard input.",
		Example: `  bulkhead image import rootfs.tar.gz base:1
  tar -C rootfs -c . | bulkhead image import --cmd sh - base:1`,
		Args: needArgs(2, 2, "file or name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			config.Entrypoint, config.Cmd = entrypoint, command
			if config.Labels, err = parsePairs("label", labels, false); err != nil {
				return err
			}
			in, total, err := a.openInput(args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			return a.importImage(cmd.Context(), in, args[0], total, args[1], config)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&entrypoint, "entrypoint", nil, "word of the program that is always started; again for each")
	flags.StringArrayVar(&command, "cmd", nil, "word of the default command; again for each")
	flags.StringArrayVarP(&config.Env, "env", "e", nil, "variable NAME=VALUE")
	flags.StringVarP(&config.User, "user", "u", "", "user to run as")
	flags.StringVarP(&config.WorkingDir, "workdir", "w", "", "directory to start in")
	flags.StringArrayVarP(&labels, "label", "l", nil, "label KEY[=VALUE]")
	return cmd
}

// importImage sends an archive, of which what and total tell people, and prints the ID of the image that it becomes.
func (a *app) importImage(ctx context.Context, in io.Reader, what string, total int64, name string, config api.ImageConfig) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	p := a.progress(false)
	image, err := c.ImportImage(ctx, p.reader(in, what, total), name, config)
	p.close(err)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.Stdout, image.ID)
	return err
}

// openInput opens a file, or standard input for "-". The size is 0 if unknown.
func (a *app) openInput(path string) (io.ReadCloser, int64, error) {
	if path == "-" {
		return io.NopCloser(a.Stdin), 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("open archive: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = api.Errorf(api.KindInvalid, "%s is a directory", path).Hint("tar -C %s -c . | bulkhead image import - NAME", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("open archive: %w", err)
	}
	return f, st.Size(), nil
}
