package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/discharger"
	"github.com/writ-dev/writ/capability"
)

// fileBook is the store of a discharger on its own as a book of devices. A
// revocation is kept with its reason; what was forgotten leaves no trace.
type fileBook struct{ *discharger.File }

var errNoReason = errors.New("--reason is required")

func (b fileBook) Devices(context.Context, string, int) (*api.DeviceList, error) {
	list, err := b.File.Devices()
	return &api.DeviceList{Devices: list}, err
}

func (b fileBook) Device(_ context.Context, id capability.DeviceID) (*api.DeviceInfo, error) {
	list, err := b.File.Devices()
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Device == id.String() {
			return &list[i], nil
		}
	}
	return nil, unknownDevice(id)
}

func unknownDevice(id capability.DeviceID) error { return fmt.Errorf("no such device: %s", id) }

func (b fileBook) Revoke(_ context.Context, r api.RevokeRequest) (*api.RevokeResponse, error) {
	if r.Reason == "" {
		return nil, errNoReason
	}
	id, err := capability.ParseDeviceID(r.Device)
	if err != nil {
		return nil, err
	}
	return &api.RevokeResponse{}, b.File.Revoke(id, r.Reason)
}

func (b fileBook) ForgetDevice(_ context.Context, id capability.DeviceID, r api.ForgetDeviceRequest) (*api.ForgetDeviceResponse, error) {
	if r.Reason == "" {
		return nil, errNoReason
	}
	known, err := b.Forget(id)
	if err == nil && !known {
		err = unknownDevice(id)
	}
	return &api.ForgetDeviceResponse{}, err
}
