package testhost

import "net"

// MAC is a hardware address.
type MAC = net.HardwareAddr
