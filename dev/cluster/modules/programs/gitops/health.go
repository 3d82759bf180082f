package main

import (
	"context"
	"fmt"

	argohealth "github.com/argoproj/argo-cd/gitops-engine/pkg/health"
	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/argo-cd/v3/util/settings"
	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/runtime/cel"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// verdict is what one engine says of one object.
type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func health(configMap, kustomization string) error {
	overrides, err := argoSettings(configMap)
	if err != nil {
		return err
	}
	wanted := kustomizev1.Kustomization{}
	if err := read(kustomization, "kustomize.toolkit.fluxcd.io/v1 Kustomization", &wanted); err != nil {
		return err
	}
	reader, err := cel.NewStatusReader(wanted.Spec.HealthCheckExprs)
	if err != nil {
		return err
	}
	found, err := objects()
	if err != nil {
		return err
	}
	verdicts := []map[string]verdict{}
	for _, object := range found {
		argo, err := argohealth.GetResourceHealth(object, lua.ResourceHealthOverrides(overrides))
		if err != nil {
			return fmt.Errorf("%s: Argo CD: %w", object.GetName(), err)
		}
		if argo == nil {
			return fmt.Errorf("%s: Argo CD has no health check for a %s", object.GetName(), object.GetKind())
		}
		flux, err := reader(nil).ReadStatusForObject(context.Background(), nil, object)
		if err != nil {
			return fmt.Errorf("%s: Flux: %w", object.GetName(), err)
		}
		if flux.Error != nil { // as Flux does: it shows the object as Unknown, and waits
			flux.Message = flux.Error.Error()
		}
		plain, err := status.Compute(object)
		if err != nil {
			return fmt.Errorf("%s: kstatus: %w", object.GetName(), err)
		}
		verdicts = append(verdicts, map[string]verdict{
			"argo":    {string(argo.Status), argo.Message},
			"flux":    {flux.Status.String(), flux.Message},
			"kstatus": {plain.Status.String(), plain.Message},
		})
	}
	return answer(verdicts)
}

// argoSettings reads the ConfigMap as Argo CD does, from an API server that holds nothing else.
func argoSettings(path string) (map[string]v1alpha1.ResourceOverride, error) {
	configMap := corev1.ConfigMap{}
	if err := read(path, "v1 ConfigMap", &configMap); err != nil {
		return nil, err
	}
	configMap.Namespace = "argocd"
	secret := corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "argocd-secret", Namespace: "argocd"}}
	client := fake.NewClientset(&configMap, &secret)
	return settings.NewSettingsManager(context.Background(), client, "argocd").GetResourceOverrides()
}
