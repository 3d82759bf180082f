package main

import (
	"fmt"

	argov1alpha1 "github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	helmv2 "github.com/fluxcd/helm-controller/api/v2"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"sigs.k8s.io/yaml"
)

// types are the engines' own, by what a manifest calls them.
var types = map[string]func() any{
	"argoproj.io/v1alpha1 Application":             func() any { return &argov1alpha1.Application{} },
	"source.toolkit.fluxcd.io/v1 GitRepository":    func() any { return &sourcev1.GitRepository{} },
	"kustomize.toolkit.fluxcd.io/v1 Kustomization": func() any { return &kustomizev1.Kustomization{} },
	"helm.toolkit.fluxcd.io/v2 HelmRelease":        func() any { return &helmv2.HelmRelease{} },
}

// check answers the kinds that it has read, so that its caller can tell that nothing was passed over.
func check(files []string) error {
	kinds := []string{}
	for _, file := range files {
		found, err := documents(file)
		if err != nil {
			return err
		}
		for _, document := range found {
			empty, known := types[document.kind]
			if !known {
				return fmt.Errorf("%s: %s is not of Argo CD or Flux", file, document.kind)
			}
			if err := yaml.UnmarshalStrict(document.content, empty()); err != nil {
				return fmt.Errorf("%s: %s: %w", file, document.kind, err)
			}
			kinds = append(kinds, document.kind)
		}
	}
	return answer(kinds)
}
