package wireguard

// Implementation says what encrypts on this host.
func Implementation() string {
	return "WireGuard outside the kernel (wireguard-go), in a process of its own"
}
