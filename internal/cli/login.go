package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bulkhead-net/bulkhead/api"
)

// maxSecret bounds what is read as a password; tokens are a few kilobytes.
const maxSecret = 64 << 10

func newLoginCmd(a *app) *cobra.Command {
	var user string
	var fromStdin, plainHTTP bool
	cmd := &cobra.Command{
		Use:   "login [flags] REGISTRY",
		Short: "Log in to a registry",
		Long: `Checks user name and password with a registry, and has the daemon keep them, in a file that only
root may read. They serve every pull and push on this host that brings none of its own.

The password is asked for on a terminal, or read from standard input with --password-stdin. There
is no flag for it: other users see the arguments of a command.`,
		Example: `  bulkhead login registry.example
  cat password.txt | bulkhead login -u ann --password-stdin registry.example:5000`,
		Args: needArgs(1, 1, "registry"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := api.LoginRequest{Registry: args[0], PlainHTTP: plainHTTP}
			var err error
			if r.Auth, err = a.askLogin(user, fromStdin); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.Login(cmd.Context(), r); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Stderr, "Logged in to "+clean(r.Registry)+".")
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&user, "username", "u", "", "user name; asked for on a terminal")
	flags.BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	flags.BoolVar(&plainHTTP, "plain-http", false, "talk to the registry without encryption; on loopback that is always allowed")
	return cmd
}

func newLogoutCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "logout REGISTRY",
		Short:   "Log out of a registry",
		Long:    "Has the daemon forget what \"bulkhead login\" gave it for a registry. Nothing to forget is success.",
		Example: "  bulkhead logout registry.example",
		Args:    needArgs(1, 1, "registry"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return c.Logout(cmd.Context(), args[0])
		},
	}
}

// askLogin gets user name and password, from the terminal where they are not given.
func (a *app) askLogin(user string, fromStdin bool) (api.RegistryAuth, error) {
	auth := api.RegistryAuth{Username: user}
	if fromStdin {
		if user == "" {
			return auth, api.Errorf(api.KindInvalid, "--password-stdin leaves nobody to ask for the user name").Hint("give --username")
		}
		text, err := io.ReadAll(io.LimitReader(a.Stdin, maxSecret))
		if err != nil {
			return auth, fmt.Errorf("read the password: %w", err)
		}
		auth.Password = strings.TrimRight(string(text), "\r\n")
	} else {
		file, ok := terminal(a.Stdin)
		if !ok {
			return auth, api.Errorf(api.KindInvalid, "there is no terminal to ask for the password on").Hint("give --username and --password-stdin")
		}
		if user == "" {
			fmt.Fprint(a.Stderr, "User name: ")
			line, err := bufio.NewReader(io.LimitReader(file, maxSecret)).ReadString('\n')
			if err != nil {
				return auth, fmt.Errorf("read the user name: %w", err)
			}
			auth.Username = strings.TrimSpace(line)
		}
		fmt.Fprint(a.Stderr, "Password: ")
		secret, err := term.ReadPassword(int(file.Fd()))
		fmt.Fprintln(a.Stderr)
		if err != nil {
			return auth, fmt.Errorf("read the password: %w", err)
		}
		auth.Password = string(secret)
	}
	if auth.Username == "" || auth.Password == "" {
		return auth, api.Errorf(api.KindInvalid, "the user name or the password is empty")
	}
	return auth, nil
}
