package hcn

import (
	"encoding/json"
	"fmt"
)

// NotificationType is the number of an event. There is a gap after 9: the numbers go on with hexadecimal 10 (HCN schema).
type NotificationType uint32

// The events.
const (
	NotificationNetworkPreCreate                NotificationType = 0x1
	NotificationNetworkCreate                   NotificationType = 0x2
	NotificationNetworkPreDelete                NotificationType = 0x3
	NotificationNetworkDelete                   NotificationType = 0x4
	NotificationNamespaceCreate                 NotificationType = 0x5
	NotificationNamespaceDelete                 NotificationType = 0x6
	NotificationGuestNetworkServiceCreate       NotificationType = 0x7
	NotificationGuestNetworkServiceDelete       NotificationType = 0x8
	NotificationNetworkEndpointAttached         NotificationType = 0x9
	NotificationNetworkEndpointDetached         NotificationType = 0x10
	NotificationGuestNetworkServiceStateChanged NotificationType = 0x11
	NotificationGuestNetworkServiceIfaceChanged NotificationType = 0x12
	NotificationServiceDisconnect               NotificationType = 0x01000000
)

// notificationFlags are the bits of the number that are reserved for flags.
const notificationFlags NotificationType = 0xF0000000

func (t NotificationType) String() string {
	switch t &^ notificationFlags {
	case NotificationNetworkPreCreate:
		return "NetworkPreCreate"
	case NotificationNetworkCreate:
		return "NetworkCreate"
	case NotificationNetworkPreDelete:
		return "NetworkPreDelete"
	case NotificationNetworkDelete:
		return "NetworkDelete"
	case NotificationNamespaceCreate:
		return "NamespaceCreate"
	case NotificationNamespaceDelete:
		return "NamespaceDelete"
	case NotificationGuestNetworkServiceCreate:
		return "GuestNetworkServiceCreate"
	case NotificationGuestNetworkServiceDelete:
		return "GuestNetworkServiceDelete"
	case NotificationNetworkEndpointAttached:
		return "NetworkEndpointAttached"
	case NotificationNetworkEndpointDetached:
		return "NetworkEndpointDetached"
	case NotificationGuestNetworkServiceStateChanged:
		return "GuestNetworkServiceStateChanged"
	case NotificationGuestNetworkServiceIfaceChanged:
		return "GuestNetworkServiceInterfaceStateChanged"
	case NotificationServiceDisconnect:
		return "ServiceDisconnect"
	default:
	}
	return fmt.Sprintf("0x%x", uint32(t))
}

// NotificationData is the payload of an event.
type NotificationData struct {
	ID    GUID
	Flags uint32
	Data  json.RawMessage `json:",omitempty"`
}

// Event is a notification with its number and its HRESULT, as the event stream carries it.
type Event struct {
	Type   NotificationType
	Status ErrorCode
	NotificationData
}
